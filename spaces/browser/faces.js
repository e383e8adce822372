// Finds faces and cuts them out as FFHQ's: preprocessing/builtin_landmarks.py and preprocessing/align.py, number by number.

import { bytes, cut, pad, picture, reduce, resize, rint, transform } from "./pixels.js";

const OVERLAP = 1 / 3, COARSE_PARTS = 768, FINE_PART = 640, MAX_FINE_PARTS = 100, PADDED = 2, SAME_FACE = 0.4;
const TURNS = [45, -45, 90, -90, 180].map(degrees => degrees * Math.PI / 180);
const DARK = 60, LIT = 100, WHITE = 235, MAX_CANDIDATES = 400;
const DOUBTFUL = 0.1, MAX_DISAGREEMENT = 0.18; // of the mirror image's landmarks, in eye distances
const FIRST_CROP = [1.1, 0.05], NEXT_CROPS = [[1.2, 0.04], [1.4, 0.04]];
const MIN_QUAD_SIDE = 16, MAX_QUAD_SIDE = 4, OFFICIAL_SIZE = 256;

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const mean = points => [0, 1].map(i => points.reduce((sum, point) => sum + point[i], 0) / points.length);
const low = points => [0, 1].map(i => Math.min(...points.map(point => point[i])));
const high = points => [0, 1].map(i => Math.max(...points.map(point => point[i])));

/** Turn bytes, 4 a pixel, into what a network reads: (3, H, W), in [-1, 1]. */
export function toTensor({ data, channels }) {
  const size = data.length / channels, out = new Float32Array(3 * size);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) out[c * size + i] = data[i * channels + c] / 127.5 - 1;
  return out;
}

/** A square in the photo's pixels, turned clockwise by `angle` radians. It may reach beyond the photo. */
class Square {
  constructor(x, y, side, angle = 0) {
    Object.assign(this, { x, y, side, angle, cos: Math.cos(angle), sin: Math.sin(angle) });
  }

  /** Round what a network gave, so that the last bits of a machine's arithmetic decide nothing. */
  static rounded(x, y, side, angle) {
    return new Square(...[x, y, side].map(each => Math.round(each * 100) / 100), Math.round(angle * 1e4) / 1e4);
  }

  static around(landmarks) {
    const left = mean(landmarks.slice(36, 42)), right = mean(landmarks.slice(42, 48));
    const angle = Math.atan2(right[1] - left[1], right[0] - left[0]), cos = Math.cos(angle), sin = Math.sin(angle);
    const level = landmarks.map(([x, y]) => [x * cos + y * sin, y * cos - x * sin]), least = low(level), most = high(level);
    const [x, y] = [0, 1].map(i => (least[i] + most[i]) / 2);
    return Square.rounded(cos * x - sin * y, sin * x + cos * y, Math.max(most[0] - least[0], most[1] - least[1]), angle);
  }

  scaled([scale, down]) {
    return new Square(this.x - this.sin * down * this.side, this.y + this.cos * down * this.side, this.side * scale, this.angle);
  }

  toPhoto([u, v]) {
    const x = (u - 0.5) * this.side, y = (v - 0.5) * this.side;
    return [x * this.cos - y * this.sin + this.x, x * this.sin + y * this.cos + this.y];
  }

  cuts(box, photo) {
    const left = this.x - this.side / 2, top = this.y - this.side / 2;
    const inside = [left > 0, top > 0, left + this.side < photo.width, top + this.side < photo.height];
    const beyond = [box[0] < 0.01, box[1] < 0.01, box[2] > 0.99, box[3] > 0.99];
    return this.angle === 0 && inside.some((yes, i) => yes && beyond[i]);
  }

  crop(photo, size) {
    if (this.angle === 0) return level(photo, this.x - this.side / 2, this.y - this.side / 2, this.side, size);
    const reach = this.side * (Math.abs(this.cos) + Math.abs(this.sin)), large = 2 * Math.ceil(size * reach / this.side);
    const around = level(photo, this.x - reach / 2, this.y - reach / 2, reach, large);
    const step = this.side * large / (reach * 2 * size), a = this.cos * step, b = this.sin * step, shift = large / 2;
    const turned = transform(around, 2 * size, [shift - size * (a - b), a, -b, shift - size * (a + b), b, a], 4);
    return reduce(turned, [2, 2], [0, 0], [2 * size, 2 * size]);
  }
}

/** Cut out a level square and resize it. Black beyond the photo. */
function level(photo, x0, y0, side, size) {
  const step = side / size, out = picture(size, size, 4, bytes(size * size * 4));
  const [left, right] = [x0, x0 + side].map(x => rint((clamp(x, 0, photo.width) - x0) / step));
  const [top, bottom] = [y0, y0 + side].map(y => rint((clamp(y, 0, photo.height) - y0) / step));
  if (right <= left || bottom <= top) return out;
  const begin = [clamp(x0 + left * step, 0, photo.width - 1), clamp(y0 + top * step, 0, photo.height - 1)];
  const end = [Math.min(x0 + right * step, photo.width), Math.min(y0 + bottom * step, photo.height)];
  const part = resize(photo, right - left, bottom - top, "bilinear", [...begin, ...end], 3);
  const row = 4 * part.width;
  for (let y = 0; y < part.height; y++) out.data.set(part.data.subarray(y * row, (y + 1) * row), ((top + y) * size + left) * 4);
  return out;
}

/** Brighten a dark crop for the networks: first stretch it to white, then apply a gamma curve. */
function brighten(crop) {
  const { width, height, data } = crop, grey = bytes(width * height);
  for (let i = 0, at = 0; i < grey.length; i++, at += 4) {
    grey[i] = (data[at] * 19595 + data[at + 1] * 38470 + data[at + 2] * 7471 + 0x8000) >> 16;
  }
  const levels = resize(picture(width, height, 1, grey), 112, 112, "box").data.filter(level => level > 0).sort();
  if (levels.length === 0) return crop;
  const place = 0.995 * (levels.length - 1), below = Math.floor(place);
  const bright = levels[below] + (levels[Math.min(below + 1, levels.length - 1)] - levels[below]) * (place - below);
  const gain = Math.max(1, WHITE / Math.max(bright, 8));
  const average = levels.reduce((sum, level) => sum + clamp(level * gain, 1, 255), 0) / levels.length;
  const gamma = average < DARK ? Math.log(LIT / 255) / Math.log(average / 255) : 1;
  const table = Array.from({ length: 256 }, (_, level) => rint(255 * Math.min(level * gain / 255, 1) ** gamma));
  return picture(width, height, 4, data.map(level => table[level]));
}

function* stages({ width, height }) {
  const longer = Math.max(width, height), whole = new Square(longer / 2, longer / 2, longer);
  const wide = new Square(width / 2, height / 2, longer * PADDED);
  yield [whole, wide, ...(longer > COARSE_PARTS ? parts(width, height, longer / 2) : [])];
  const side = Math.max(FINE_PART, Math.sqrt(width * height / MAX_FINE_PARTS) / (1 - OVERLAP));
  if (longer > 2 * FINE_PART) yield parts(width, height, side);
  for (const turn of TURNS) yield [new Square(width / 2, height / 2, Math.hypot(width, height), turn)];
}

/** Cover a photo with overlapping squares. */
function parts(width, height, side) {
  const centres = length => {
    if (length <= side) return [length / 2];
    const count = 1 + Math.ceil((length - side) / (side * (1 - OVERLAP)));
    return Array.from({ length: count }, (_, i) => side / 2 + (length - side) * i / (count - 1));
  };
  return centres(height).flatMap(y => centres(width).map(x => new Square(x, y, side)));
}

function* bestFirst(boxes, { iou_threshold }) {
  const kept = [], area = box => Math.max(box[2] - box[0], 0) * Math.max(box[3] - box[1], 0);
  for (const box of boxes) {
    const overlaps = kept.some(other => {
      const both = [Math.max(box[0], other[0]), Math.max(box[1], other[1]), Math.min(box[2], other[2]), Math.min(box[3], other[3])];
      return area(both) > iou_threshold * (area(box) + area(other) - area(both));
    });
    if (overlaps) continue;
    kept.push(box);
    yield box;
  }
}

const same = (a, b) => Math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
  < SAME_FACE * Math.max(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]);

/** Find the faces of a photo: their 68 landmarks and boxes, the largest first. `run` runs a network by its name. */
export async function findFaces(photo, model, run) {
  for (const views of stages(photo)) {
    const candidates = [], faces = [];
    for (const view of views) candidates.push(...await detect(photo, view, model.detector, run));
    for (const { square, box } of candidates.sort((a, b) => b.score - a.score)) {
      if (faces.some(face => same(box, face.box))) continue;
      const [landmarks, disagreement] = await refine(photo, square, model.landmarks, run);
      if (disagreement < MAX_DISAGREEMENT) faces.push({ landmarks, box });
    }
    const side = ({ box }) => Math.max(box[2] - box[0], box[3] - box[1]);
    if (faces.length) return faces.sort((a, b) => side(b) - side(a));
  }
  return [];
}

async function detect(photo, view, config, run) {
  const size = config.side, { boxes, scores } = await run("detector", { x: [[1, 3, size, size], toTensor(brighten(view.crop(photo, size)))] });
  const found = Array.from(scores, (logit, i) => [...boxes.slice(4 * i, 4 * i + 4), 1 / (1 + Math.exp(-logit))])
    .filter(box => box[4] > config.score_threshold).sort((a, b) => b[4] - a[4]).slice(0, MAX_CANDIDATES);
  const candidates = [];
  for (const box of bestFirst(found, config)) {
    if (view.cuts(box.map(x => x / size), photo)) continue; // a neighbouring view shows more of this face
    const [x, y] = view.toPhoto([(box[0] + box[2]) / 2 / size, (box[1] + box[3]) / 2 / size]);
    const [width, height] = [0, 1].map(i => (box[i + 2] - box[i]) * view.side / size);
    const square = Square.rounded(x, y, Math.max(width, height), view.angle);
    candidates.push({ square, score: box[4], box: [x - width / 2, y - height / 2, x + width / 2, y + height / 2] });
  }
  return candidates;
}

/** Find the landmarks in a box, crop upright around them, and find them again. If in doubt, turn the box. */
async function refine(photo, box, config, run) {
  const found = [];
  for (const turn of [0, ...TURNS]) {
    const turned = new Square(box.x, box.y, box.side, box.angle + turn);
    const around = Square.around((await averaged(photo, [turned.scaled(FIRST_CROP)], config, run))[0]);
    found.push(await averaged(photo, NEXT_CROPS.map(crop => around.scaled(crop)), config, run));
    if (found[0][1] < DOUBTFUL) break;
  }
  return found.reduce((best, each) => each[1] < best[1] ? each : best);
}

/** Average the landmarks over crops and their mirror images, and measure how far the mirror images disagree. */
async function averaged(photo, squares, { side, mirror }, run) {
  const crops = [];
  let error = 0, eyes = 0;
  for (const square of squares) {
    const { landmarks } = await run("landmarks", { x: [[1, 3, side, side], toTensor(brighten(square.crop(photo, side)))] });
    const points = Array.from({ length: 136 }, (_, i) => [landmarks[2 * i], landmarks[2 * i + 1]]);
    const own = points.slice(0, 68), mirrored = mirror.map(i => [1 - points[68 + i][0], points[68 + i][1]]);
    for (const each of [own, mirrored]) {
      const left = mean(each.slice(36, 42)), right = mean(each.slice(42, 48));
      eyes += Math.hypot(right[0] - left[0], right[1] - left[1]) / 2;
    }
    error += own.reduce((sum, point, i) => sum + Math.hypot(point[0] - mirrored[i][0], point[1] - mirrored[i][1]), 0) / 68;
    crops.push(own.map((point, i) => square.toPhoto(mean([point, mirrored[i]]))));
  }
  return [crops[0].map((_, i) => mean(crops.map(crop => crop[i]))), error / Math.max(eyes, 1e-6)];
}

/** Find FFHQ's square around a face, turned with it: top left, bottom left, bottom right, top right. */
export function faceQuad(landmarks, scale) {
  const left = mean(landmarks.slice(36, 42)), right = mean(landmarks.slice(42, 48));
  const eyes = mean([left, right]), mouth = mean([landmarks[48], landmarks[54]]);
  const across = [right[0] - left[0], right[1] - left[1]], down = [mouth[0] - eyes[0], mouth[1] - eyes[1]];
  let x = [across[0] + down[1], across[1] - down[0]];
  const side = Math.max(Math.hypot(...across) * 2, Math.hypot(...down) * 1.8) / Math.hypot(...x) * scale;
  x = x.map(each => each * side);
  const y = [-x[1], x[0]], centre = [0, 1].map(i => eyes[i] + 0.1 * down[i]);
  return [[-1, -1], [-1, 1], [1, 1], [1, -1]].map(([a, b]) => [0, 1].map(i => centre[i] + a * x[i] + b * y[i]));
}

/** Cut a square out of a photo as the official FFHQ code does: the picture, and the quad that it shows. */
export function cropQuad(photo, quad, size) {
  const sides = [photo.width, photo.height], whole = Math.hypot(quad[3][0] - quad[0][0], quad[3][1] - quad[0][1]);
  if (!(whole >= MIN_QUAD_SIDE)) throw new Error("The face is too small. Use a photo of a higher resolution.");
  const outside = high(quad).some(x => x < 0) || low(quad).some((x, i) => x > sides[i] - 1);
  if (outside || whole > MAX_QUAD_SIDE * Math.max(...sides)) throw new Error("The face lies outside the photo. Try another photo.");

  const official = size >= OFFICIAL_SIZE, shrink = Math.max(Math.trunc(whole / size / (official ? 2 : 4)), 1);
  const shrunken = sides.map(length => Math.max(rint(length / shrink), 1)), step = sides.map((length, i) => length / shrunken[i]);
  const corners = quad.map(point => point.map((x, i) => official ? x / shrink : (x + 0.5) / step[i] - 0.5));
  const side = whole / shrink, sampling = official || side <= size ? size : size * 2 * Math.ceil(side / size);

  const border = Math.max(rint(side * 0.1), 3);
  let from = low(corners).map(x => Math.max(Math.floor(x) - border, 0));
  let to = high(corners).map((x, i) => Math.min(Math.ceil(x) + border, shrunken[i]));
  from = from.map((x, i) => Math.min(x, shrunken[i] - 1));
  to = to.map(x => Math.max(x, 1));
  const box = [from[0] * step[0], from[1] * step[1], to[0] * step[0], to[1] * step[1]];
  let region = shrink > 1 ? resize(photo, to[0] - from[0], to[1] - from[1], "lanczos", box) : cut(photo, ...from, ...to);
  let local = corners.map(point => point.map((x, i) => x - from[i]));

  let before = low(local).map(x => Math.max(border - Math.floor(x), 0));
  let after = high(local).map((x, i) => Math.max(Math.ceil(x) - (to[i] - from[i]) + border, 0));
  if (Math.max(...before, ...after) > border - 4) {
    [before, after] = [before, after].map(each => each.map(x => Math.max(x, rint(side * 0.3))));
    region = pad(region, before, after, side * 0.02);
    local = local.map(point => point.map((x, i) => x + before[i]));
  }
  const [nw, sw, , ne] = local.map(point => point.map(x => x + 0.5));
  const [x, y] = [0, 1].map(i => [nw[i], (ne[i] - nw[i]) / sampling, (sw[i] - nw[i]) / sampling]);
  const image = transform(region, sampling, [...x, ...y], 2);
  const shown = corners.map(point => point.map((each, i) => (each + 0.5) * step[i] - 0.5));
  return { image: sampling === size ? image : resize(image, size, size, "lanczos"), quad: shown };
}
