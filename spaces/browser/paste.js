// Puts a change of the face back into its photo, as preprocessing/paste.py does with `detail="add"`, and marks the file.

import { bytes, resize, rint } from "./pixels.js";

const FEATHER = 0.08, MAX_RESIZED = 2048; // width of the soft seam, relative to the face; pixels a side
const PARTS = 1024; // of a pixel, for which there are weights
const far = x => ((-0.75 * x + 3.75) * x - 6) * x + 3, near = x => (1.25 * x - 2.25) * x * x + 1; // OpenCV's, a = -0.75
const WEIGHTS = Float64Array.from(Array.from({ length: PARTS + 1 }, (_, i) => {
  const d = i / PARTS;
  return [far(d + 1), near(d), near(1 - d), far(2 - d)];
}).flat());

/** Add a change, in levels, to the part of a photo inside a quad. Gives {x, y, width, height, data}. */
export function paste(photo, quad, change) {
  const [x0, y0] = quad[0], across = [quad[3][0] - x0, quad[3][1] - y0], down = [quad[1][0] - x0, quad[1][1] - y0];
  const sides = [across, down].map(axis => Math.min(Math.max(rint(Math.hypot(...axis)), 1), Math.max(change.width, MAX_RESIZED)));
  const layer = resize(change, ...sides, sides[0] < change.width ? "lanczos" : "bicubic");
  const area = across[0] * down[1] - across[1] * down[0], limits = [photo.width, photo.height];
  const [left, top] = [0, 1].map(i => Math.max(Math.ceil(Math.min(...quad.map(point => point[i]))), 0));
  const [right, bottom] = [0, 1].map(i => Math.min(Math.floor(Math.max(...quad.map(point => point[i]))) + 1, limits[i]));
  const width = Math.max(right - left, 0), height = Math.max(bottom - top, 0), data = bytes(width * height * 4);
  const [wide, high] = sides;
  const [ux, uy, vx, vy] = [down[1], -down[0], -across[1], across[0]].map(x => x / area), drawn = layer.data, old = photo.data;
  for (let y = 0, to = 0; y < height; y++) {
    let at = ((top + y) * photo.width + left) * 4;
    for (let x = 0; x < width; x++, at += 4, to += 4) {
      const dx = left + x - x0, dy = top + y - y0;
      const u = dx * ux + dy * uy, v = dx * vx + dy * vy;
      const ramp = Math.min(Math.max((0.5 - Math.max(Math.abs(u - 0.5), Math.abs(v - 0.5))) / FEATHER, 0), 1);
      const mask = ramp * ramp * (3 - 2 * ramp);
      let r = 0, g = 0, b = 0;
      if (mask) {
        const place = u * wide - 0.5, line = v * high - 0.5, i0 = Math.floor(place) | 0, j0 = Math.floor(line) | 0;
        const i1 = Math.round((place - i0) * PARTS) * 4 | 0, j1 = Math.round((line - j0) * PARTS) * 4 | 0;
        for (let j = 0; j < 4; j++) {
          const row = clamp(j0 - 1 + j, high) * wide, share = WEIGHTS[j1 + j];
          for (let i = 0; i < 4; i++) {
            const from = (row + clamp(i0 - 1 + i, wide)) * 3, weight = share * WEIGHTS[i1 + i];
            r += weight * drawn[from];
            g += weight * drawn[from + 1];
            b += weight * drawn[from + 2];
          }
        }
      }
      data[to] = mixed(old[at], r, mask);
      data[to + 1] = mixed(old[at + 1], g, mask);
      data[to + 2] = mixed(old[at + 2], b, mask);
      data[to + 3] = 255;
    }
  }
  return { x: left, y: top, width, height, data };
}

const clamp = (i, length) => i < 0 ? 0 : i < length ? i : length - 1;
/** Draw a change on a canvas, fast enough for every frame: as `paste`, but with the canvas's own smoothing, on `base`. */
export function drawChange(context, quad, base, { width: size, data }) {
  const [[x0, y0], [x1, y1], , [x2, y2]] = quad, layer = new OffscreenCanvas(size, size), brush = layer.getContext("2d");
  const edge = i => Math.min((0.5 - Math.abs((i + 0.5) / size - 0.5)) / FEATHER, 1), part = new ImageData(size, size);
  context.globalCompositeOperation = "copy";
  context.drawImage(base, 0, 0);
  for (const sign of [1, -1]) { // what gets lighter; then, on the negative, what gets darker
    for (let i = 0; i < size * size; i++) {
      const ramp = Math.min(edge(i % size), edge(Math.floor(i / size))), mask = sign * ramp * ramp * (3 - 2 * ramp);
      for (let c = 0; c < 4; c++) part.data[4 * i + c] = c < 3 ? data[3 * i + c] * mask : 255;
    }
    brush.putImageData(part, 0, 0);
    context.globalCompositeOperation = "lighter";
    context.setTransform((x2 - x0) / size, (y2 - y0) / size, (x1 - x0) / size, (y1 - y0) / size, x0 + 0.5, y0 + 0.5);
    context.drawImage(layer, 0, 0);
    context.resetTransform();
    context.globalCompositeOperation = "difference";
    context.fillStyle = "white";
    context.fillRect(0, 0, base.width, base.height);
  }
}

const mixed = (old, drawn, mask) => old + (Math.min(Math.max(Math.round(old + drawn), 0), 255) - old) * mask;

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
