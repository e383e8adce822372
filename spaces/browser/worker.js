// All that takes time, off the page's own thread: reads the photo, finds and inverts the face, draws the edits.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";
import { cropQuad, faceQuad, findFaces, toTensor } from "./faces.js";
import { drawChange, mark, paste } from "./paste.js";
import { picture } from "./pixels.js";

const NETWORKS = ["detector", "landmarks", "encoder", "synthesis"];
const MAX_MEGAPIXELS = 40, MIN_SIDE = 16, VIEW = 640, MARGIN = 0.35; // pixels of the view; around the face, relative to it
const KNOTS = 16; // faces that are drawn along a slider's range; between them they are blended, which is at most 1.5 levels off

let model, canvas, photo, bitmap, faces, face, view, knots;
const sessions = {};
const actions = { load, read, choose, look, edit, save };
let queue = Promise.resolve(); // one action at a time

onmessage = ({ data: { id, action, given } }) => {
  queue = queue.then(() => actions[action](given)).then(result => postMessage({ id, result }), error => postMessage({ id, error: error.message }));
};

/** Fetch everything; after this nothing is fetched. Gives what the model can edit. */
async function load(given) {
  canvas = given.canvas;
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
  let loaded = 0;
  const get = async path => {
    const response = await fetch(path);
    if (!response.ok) throw new Error(`${path} could not be loaded. Load the page again.`);
    const data = await response.arrayBuffer();
    postMessage({ loaded: loaded += data.byteLength });
    return data;
  };
  const description = get("model/model.json"), files = NETWORKS.map(name => get(`model/${name}.onnx`));
  ort.env.wasm.wasmBinary = await get("runtime/ort-wasm-simd-threaded.wasm");
  model = JSON.parse(new TextDecoder().decode(await description));
  for (const [i, name] of NETWORKS.entries()) {
    sessions[name] = await ort.InferenceSession.create(new Uint8Array(await files[i]), { logSeverityLevel: 3 });
  }
  return { directions: model.directions, threads: ort.env.wasm.numThreads };
}

async function run(name, inputs) {
  const feeds = Object.entries(inputs).map(([key, [shape, data]]) => [key, new ort.Tensor("float32", data, shape)]);
  const results = await sessions[name].run(Object.fromEntries(feeds));
  return Object.fromEntries(Object.entries(results).map(([key, tensor]) => [key, tensor.data]));
}

/** Read a photo, and find its faces. Gives their number. */
async function read({ file }) {
  photo = face = undefined;
  bitmap?.close();
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const start = String.fromCharCode(...new Uint8Array(await file.slice(0, 16).arrayBuffer()));
    throw new Error(/^.{4}ftyp/s.test(start)
      ? "This is a HEIC photo or a video, which this browser cannot read. On an iPhone: Settings, Camera, Formats, Most Compatible."
      : "This file is not a picture that the browser can read. Take a JPEG, PNG or WebP.");
  }
  const { width, height } = bitmap, megapixels = width * height / 1e6;
  if (megapixels > MAX_MEGAPIXELS) throw new Error(`The photo has ${megapixels.toFixed(0)} megapixels; at most ${MAX_MEGAPIXELS} are read. Shrink it first.`);
  if (Math.min(width, height) < MIN_SIDE) throw new Error(`The photo is too small: ${width} x ${height} pixels.`);
  try {
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // under what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    photo = picture(width, height, 4, context.getImageData(0, 0, width, height).data);
  } catch {
    throw new Error(`This browser has no room for a photo of ${megapixels.toFixed(0)} megapixels. Shrink it first.`);
  }
  look({ whole: true });
  faces = await findFaces(photo, model, run);
  if (!faces.length) throw new Error("No face was found in the photo. Use one in which the face is larger, lit and seen from the front.");
  return { faces: faces.length };
}

/** Cut a face out and bring it into the latent space. Gives its code. */
async function choose({ index }) {
  face = undefined;
  const { quad } = cropQuad(photo, faceQuad(faces[index].landmarks, model.crop_scale), model.resolution);
  const { image } = cropQuad(photo, quad, model.encoder_side), side = model.encoder_side;
  const { w_plus } = await run("encoder", { x: [[1, 3, side, side], toTensor(image)] });
  const before = await draw(w_plus, {});
  face = { quad, w_plus, before };
  knots = {};
  look({});
  return { quad, w_plus };
}

/** Draw what the model makes of a code and edits of it: levels, (3, R, R). */
async function draw(code, strengths) {
  const { num_ws, w_dim, num_styles } = model, w_plus = Float32Array.from(code), styles = new Float32Array(num_styles);
  for (const { name, space, layers, step } of model.directions) {
    const strength = strengths[name] ?? 0;
    if (space === "s") step.forEach((x, i) => { styles[i] += strength * x; });
    for (let layer = layers[0]; strength && space === "w" && layer < layers[1]; layer++) {
      const row = Array.isArray(step[0]) ? step[layer] : step;
      row.forEach((x, i) => { w_plus[layer * w_dim + i] += strength * x; });
    }
  }
  const { image } = await run("synthesis", { w_plus: [[1, num_ws, w_dim], w_plus], styles: [[1, num_styles], styles] });
  return Uint8ClampedArray.from(image, x => Math.fround(Math.fround(x + 1) * 127.5));
}

/** What the edits change in the face: a picture of differences. While one slider moves, faces are blended. */
async function changed(strengths, moving) {
  const size = model.resolution ** 2, data = new Float32Array(3 * size);
  const [after, next, share] = moving ? await between(strengths, moving) : [await draw(face.w_plus, strengths), null, 0];
  for (let c = 0, from = 0; c < 3; c++) {
    for (let i = 0; i < size; i++, from++) {
      data[3 * i + c] = after[from] - face.before[from] + (share && share * (next[from] - after[from]));
    }
  }
  return picture(model.resolution, model.resolution, 3, data);
}

/** The two drawn faces beside a strength, and how near it is to the second; at most one is drawn for a frame. */
async function between(strengths, { name, range }) {
  const others = JSON.stringify([name, { ...strengths, [name]: 0 }]), place = strengths[name] / range * KNOTS;
  const low = Math.floor(place), high = Math.ceil(place), nearest = Math.round(place);
  if (knots.others !== others) knots = { others, drawn: new Map() };
  const { drawn } = knots, missing = [nearest, low, high].find(knot => !drawn.has(knot));
  if (missing !== undefined) drawn.set(missing, await draw(face.w_plus, { ...strengths, [name]: missing * range / KNOTS }));
  return [drawn.get(low) ?? drawn.get(high), drawn.get(high) ?? drawn.get(low), place - low];
}

/** Show the photo around the face, or all of it. */
function look({ whole = !face }) {
  let box = [0, 0, photo.width, photo.height];
  if (!whole) {
    const [xs, ys] = [0, 1].map(i => face.quad.map(point => point[i]));
    const reach = MARGIN * (Math.max(...xs) - Math.min(...xs));
    box = [Math.min(...xs) - reach, Math.min(...ys) - reach, Math.max(...xs) + reach, Math.max(...ys) + reach]
      .map((x, i) => Math.round(Math.min(Math.max(x, 0), [photo.width, photo.height][i % 2])));
  }
  const [x0, y0, x1, y1] = box, scale = Math.min(VIEW / Math.max(x1 - x0, y1 - y0), 1);
  const width = Math.max(Math.round((x1 - x0) * scale), 1), height = Math.max(Math.round((y1 - y0) * scale), 1);
  const base = new OffscreenCanvas(width, height), context = base.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, x0, y0, x1 - x0, y1 - y0, 0, 0, width, height);
  const steps = [width / (x1 - x0), height / (y1 - y0)];
  const quad = face?.quad.map(point => point.map((x, i) => (x - box[i] + 0.5) * steps[i] - 0.5));
  canvas ??= new OffscreenCanvas(width, height);
  Object.assign(canvas, { width, height });
  view = { quad, base, context: canvas.getContext("2d") };
  view.context.imageSmoothingQuality = "high";
  view.context.drawImage(base, 0, 0);
}

/** Draw the edits in the view. */
async function edit({ strengths, moving }) {
  drawChange(view.context, view.quad, view.base, await changed(strengths, moving));
}

/** Put the edits into the whole photo. Gives the file. */
async function save({ strengths, type }) {
  const whole = new OffscreenCanvas(photo.width, photo.height), context = whole.getContext("2d");
  context.putImageData(new ImageData(photo.data, photo.width, photo.height), 0, 0);
  const { x, y, width, height, data } = paste(photo, face.quad, await changed(strengths));
  if (width && height) context.putImageData(new ImageData(data, width, height), x, y);
  return mark(await whole.convertToBlob({ type, quality: 0.95 }));
}
