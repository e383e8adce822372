// Puts a change of the face back into its photo, as preprocessing/paste.py does with `detail="add"`, and marks the file.

import { bytes, resize, rint } from "./pixels.js";

const FEATHER = 0.08, MAX_RESIZED = 2048; // width of the soft seam, relative to the face; pixels a side

/** Add a change, a Float32Array picture in levels, to the part of a photo inside a quad. Gives {x, y, width, height, data}. */
export function paste(photo, quad, change, fine) {
  const [x0, y0] = quad[0], across = [quad[3][0] - x0, quad[3][1] - y0], down = [quad[1][0] - x0, quad[1][1] - y0];
  const sides = [across, down].map(axis => Math.min(Math.max(rint(Math.hypot(...axis)), 1), Math.max(change.width, MAX_RESIZED)));
  const layer = resize(change, ...sides, sides[0] < change.width ? "lanczos" : "bicubic");
  const area = across[0] * down[1] - across[1] * down[0], limits = [photo.width, photo.height];
  const [left, top] = [0, 1].map(i => Math.max(Math.ceil(Math.min(...quad.map(point => point[i]))), 0));
  const [right, bottom] = [0, 1].map(i => Math.min(Math.floor(Math.max(...quad.map(point => point[i]))) + 1, limits[i]));
  const width = Math.max(right - left, 0), height = Math.max(bottom - top, 0), data = bytes(width * height * 4);
  const sample = fine ? cubic(layer) : linear(layer), drawn = new Float64Array(3);
  for (let y = 0, to = 0; y < height; y++) {
    let at = ((top + y) * photo.width + left) * 4;
    for (let x = 0; x < width; x++, at += 4, to += 4) {
      const dx = left + x - x0, dy = top + y - y0;
      const u = (dx * down[1] - dy * down[0]) / area, v = (dy * across[0] - dx * across[1]) / area;
      const ramp = Math.min((0.5 - Math.max(Math.abs(u - 0.5), Math.abs(v - 0.5))) / FEATHER, 1);
      data[to + 3] = 255;
      if (ramp > 0) sample(u * sides[0] - 0.5, v * sides[1] - 0.5, drawn);
      for (let c = 0; c < 3; c++) {
        const old = photo.data[at + c];
        data[to + c] = ramp > 0 ? old + (Math.min(Math.max(rint(old + drawn[c]), 0), 255) - old) * ramp * ramp * (3 - 2 * ramp) : old;
      }
    }
  }
  return { x: left, y: top, width, height, data };
}

const clamp = (i, length) => i < 0 ? 0 : i < length ? i : length - 1;

/** Sample between four pixels: fast enough for every frame, and hardly different at the size of a face. */
function linear({ width, height, data }) {
  return (x, y, out) => {
    const left = Math.floor(x), top = Math.floor(y), a = x - left, b = y - top;
    const x0 = clamp(left, width), x1 = clamp(left + 1, width), y0 = clamp(top, height) * width, y1 = clamp(top + 1, height) * width;
    for (let c = 0; c < 3; c++) {
      const above = data[(y0 + x0) * 3 + c] * (1 - a) + data[(y0 + x1) * 3 + c] * a;
      out[c] = above * (1 - b) + (data[(y1 + x0) * 3 + c] * (1 - a) + data[(y1 + x1) * 3 + c] * a) * b;
    }
  };
}

/** Sample among sixteen pixels with OpenCV's bicubic filter (a = -0.75). */
function cubic({ width, height, data }) {
  const weights = d => {
    const k = [d + 1, d, 1 - d].map((x, i) => i ? (1.25 * x - 2.25) * x * x + 1 : ((-0.75 * x + 3.75) * x - 6) * x + 3);
    return [...k, 1 - k[0] - k[1] - k[2]];
  };
  return (x, y, out) => {
    const left = Math.floor(x), top = Math.floor(y), across = weights(x - left), down = weights(y - top);
    out.fill(0);
    for (let j = 0; j < 4; j++) {
      const row = clamp(top - 1 + j, height) * width;
      for (let i = 0; i < 4; i++) {
        const at = (row + clamp(left - 1 + i, width)) * 3, w = across[i] * down[j];
        for (let c = 0; c < 3; c++) out[c] += w * data[at + c];
      }
    }
  };
}

const XMP = `<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/">
<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">AI-edited: a part of this picture was changed with a StyleGAN2 model.</rdf:li></rdf:Alt></dc:description>
<xmp:CreatorTool>stylegan-inversion</xmp:CreatorTool>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>`;

/** Say in the metadata of a JPEG or PNG file that it is AI-edited. */
export async function mark(blob) {
  const file = new Uint8Array(await blob.arrayBuffer()), text = word => new TextEncoder().encode(word);
  const big = (number, size) => Array.from({ length: size }, (_, i) => (number >>> (8 * (size - 1 - i))) & 255);
  let at, block;
  if (blob.type === "image/png") {
    const body = [...text("iTXtXML:com.adobe.xmp\0\0\0\0\0"), ...text(XMP)];
    at = 33; // behind the header
    block = [...big(body.length - 4, 4), ...body, ...big(checksum(body), 4)];
  } else {
    const body = [...text("http://ns.adobe.com/xap/1.0/\0"), ...text(XMP)];
    at = 4 + file[4] * 256 + file[5]; // behind JFIF's first block
    block = [0xff, 0xe1, ...big(body.length + 2, 2), ...body];
  }
  return new Blob([file.subarray(0, at), new Uint8Array(block), file.subarray(at)], { type: blob.type });
}

function checksum(data) {
  let crc = -1;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
