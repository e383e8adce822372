// Pictures resized, cut and blurred as Pillow does it, to the last bit: e4e must see the same face here and in Python.
// A picture is {width, height, channels, data}. Bytes are rounded after each pass; a Float32Array stays exact.

const sinc = x => x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
const FILTERS = { // half the width of the filter, and the filter; the bicubic one has a = -0.5
  box: [0.5, x => x > -0.5 && x <= 0.5 ? 1 : 0],
  bilinear: [1, x => Math.max(1 - Math.abs(x), 0)],
  bicubic: [2, x => (x = Math.abs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0],
  lanczos: [3, x => x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0],
};
const ONE = 2 ** 22; // weights of bytes are whole numbers of this share

export const picture = (width, height, channels, data) => ({ width, height, channels, data });
export const bytes = count => new Uint8ClampedArray(count);

/** Round halves to even numbers, as Python does. */
export function rint(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

/** Resize the part of a picture that lies in `box` (x0, y0, x1, y1), antialiased. `gap` is Pillow's `reducing_gap`. */
export function resize(image, width, height, filter, box = [0, 0, image.width, image.height], gap = Infinity) {
  const size = [width, height], steps = size.map((side, i) => (box[i + 2] - box[i]) / side);
  const factors = steps.map(step => Math.trunc(step / gap) || 1);
  if (Math.max(...factors) > 1) {
    const reach = steps.map(step => (FILTERS[filter][0] - 0.5) * step);
    const low = reach.map((r, i) => Math.max(0, Math.trunc(box[i] - r)));
    const high = reach.map((r, i) => Math.min([image.width, image.height][i], Math.ceil(box[i + 2] + r)));
    image = reduce(image, factors, low, high);
    box = box.map((x, i) => (x - low[i % 2]) / factors[i % 2]);
  }
  box = box.map(Math.fround);
  const whole = image.data instanceof Uint8ClampedArray;
  const [across, down] = size.map((side, i) => weights([image.width, image.height][i], box[i], box[i + 2], side, filter, whole));
  if (width !== image.width || box[0] || box[2] !== width) {
    const first = down[0][0], last = Math.max(...down.map(([from, k]) => from + k.length));
    image = horizontal(image, across, first, last);
    down.forEach(each => { each[0] -= first; });
  }
  return down.length !== image.height || box[1] || box[3] !== height ? vertical(image, down) : image;
}

function weights(length, low, high, size, filter, whole) {
  const [support, shape] = FILTERS[filter], step = Math.fround(high - low) / size, wide = Math.max(step, 1), inverse = 1 / wide;
  return Array.from({ length: size }, (_, i) => {
    const centre = low + (i + 0.5) * step, reach = support * wide;
    const from = Math.max(Math.trunc(centre - reach + 0.5), 0), to = Math.min(Math.trunc(centre + reach + 0.5), length);
    const k = Float64Array.from({ length: to - from }, (_, j) => shape((j + from - centre + 0.5) * inverse));
    const sum = k.reduce((a, b) => a + b, 0);
    return [from, sum === 0 ? k : k.map(w => whole ? Math.trunc(w / sum * ONE + (w < 0 ? -0.5 : 0.5)) : w / sum)];
  });
}

function horizontal({ width, channels, data }, taps, first, last) {
  const out = new data.constructor(taps.length * (last - first) * channels), whole = data instanceof Uint8ClampedArray;
  let to = 0;
  for (let y = first; y < last; y++) {
    for (const [from, k] of taps) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0, at = (y * width + from) * channels + channel;
        for (let j = 0; j < k.length; j++, at += channels) sum += k[j] * data[at];
        out[to++] = whole ? (sum + ONE / 2) >> 22 : sum;
      }
    }
  }
  return picture(taps.length, last - first, channels, out);
}

function vertical({ width, channels, data }, taps) {
  const row = width * channels, sums = new Float64Array(row), whole = data instanceof Uint8ClampedArray;
  const out = new data.constructor(row * taps.length);
  taps.forEach(([from, k], y) => {
    sums.fill(0);
    for (let j = 0; j < k.length; j++) {
      for (let i = 0, at = (from + j) * row, w = k[j]; i < row; i++, at++) sums[i] += w * data[at];
    }
    for (let i = 0, to = y * row; i < row; i++, to++) out[to] = whole ? (sums[i] + ONE / 2) >> 22 : sums[i];
  });
  return picture(width, taps.length, channels, out);
}

/** Average blocks of pixels between two corners; those at the edges may be smaller. */
export function reduce(image, [across, down], [x0, y0], [x1, y1]) {
  const { channels, data } = image, width = Math.ceil((x1 - x0) / across), height = Math.ceil((y1 - y0) / down);
  const out = bytes(width * height * channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const left = x0 + x * across, top = y0 + y * down, right = Math.min(left + across, x1), bottom = Math.min(top + down, y1);
      const count = (right - left) * (bottom - top), share = Math.floor(Math.fround(2 ** 24 / count));
      for (let channel = 0; channel < channels; channel++) {
        let sum = count >> 1;
        for (let v = top; v < bottom; v++) {
          for (let u = left; u < right; u++) sum += data[(v * image.width + u) * channels + channel];
        }
        out[to++] = Math.floor(sum * share / 2 ** 24);
      }
    }
  }
  return picture(width, height, channels, out);
}

/** Sample a square at a + b x + c y, black outside the picture. `taps` is 2 for bilinear, 4 for bicubic (a = -1). */
export function transform(image, size, [ax, bx, cx, ay, by, cy], taps) {
  const { width, height, channels, data } = image, out = bytes(size * size * channels), before = taps / 2 - 1;
  const clip = (value, length) => Math.min(Math.max(value, 0), length - 1);
  const between = taps === 2 ? ([a, b], d) => a + (b - a) * d
    : ([a, b, c, e], d) => b + d * (c - a + d * (2 * (a - b) + c - e + d * (b - a - c + e)));
  const place = taps === 2 ? (x, y) => [ax + bx * x + cx * y, ay + by * x + cy * y] // each in Pillow's order
    : (x, y) => [bx * x + cx * y + ax, by * x + cy * y + ay];
  const values = new Float64Array(taps), rows = new Float64Array(taps);
  for (let y = 0, to = 0; y < size; y++) {
    for (let x = 0; x < size; x++, to += channels) {
      const [u, v] = place(x + 0.5, y + 0.5);
      if (u < 0 || u >= width || v < 0 || v >= height) continue;
      const left = Math.floor(u - 0.5), top = Math.floor(v - 0.5);
      for (let channel = 0; channel < channels; channel++) {
        for (let j = 0; j < taps; j++) {
          const row = clip(top - before + j, height) * width;
          for (let i = 0; i < taps; i++) values[i] = data[(row + clip(left - before + i, width)) * channels + channel];
          rows[j] = between(values, u - 0.5 - left);
        }
        out[to + channel] = Math.trunc(between(rows, v - 0.5 - top));
      }
    }
  }
  return picture(size, size, channels, out);
}

/** Cut out whole pixels; what lies outside the picture is its mirror image. */
export function cut({ width, height, channels, data }, x0, y0, x1, y1) {
  const mirror = (i, length) => {
    const period = Math.max(2 * (length - 1), 1), place = ((i % period) + period) % period;
    return place < length ? place : period - place;
  };
  const out = bytes((x1 - x0) * (y1 - y0) * channels);
  for (let y = y0, to = 0; y < y1; y++) {
    const row = mirror(y, height) * width;
    for (let x = x0; x < x1; x++) {
      for (let channel = 0, at = (row + mirror(x, width)) * channels; channel < channels; channel++) out[to++] = data[at + channel];
    }
  }
  return picture(x1 - x0, y1 - y0, channels, out);
}

/** Mirror a picture at its edges by `before` and `after` pixels (x, y), with more blur and nearer to the median farther out. */
export function pad(image, before, after, blur) {
  const padded = cut(image, -before[0], -before[1], image.width + after[0], image.height + after[1]);
  const { width, height, channels, data } = padded, blurred = gaussian(padded, blur);
  const level = (x, length, i) => 1 - Math.min(x / before[i], (length - 1 - x) / after[i]); // 1 at the rim
  const mask = (ramp, slope, offset) => rint(255 * Math.min(Math.max(ramp * slope + offset, 0), 1));
  const blend = (a, b, share) => {
    const sum = a * (255 - share) + b * share + 128;
    return ((sum >> 8) + sum) >> 8;
  };
  const each = change => {
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const ramp = Math.max(level(x, width, 0), level(y, height, 1));
        for (let channel = 0; channel < channels; channel++, at++) data[at] = change(at, channel, ramp);
      }
    }
  };
  each((at, channel, ramp) => blend(data[at], blurred.data[at], mask(ramp, 3, 1)));
  const counts = Array.from({ length: channels }, () => new Uint32Array(256));
  for (let at = 0; at < data.length; at++) counts[at % channels][data[at]]++;
  const middle = counts.map(count => {
    let level = 0;
    for (let sum = count[0]; sum <= Math.floor(width * height / 2); sum += count[++level]);
    return level;
  });
  each((at, channel, ramp) => blend(data[at], middle[channel], mask(ramp, 1, 0)));
  return padded;
}

/** Blur with three boxes each way, which come near to a Gaussian. */
function gaussian(image, sigma) {
  const f = Math.fround, variance = f(sigma * sigma / 3), whole = Math.floor((f(Math.sqrt(12 * variance + 1)) - 1) / 2);
  const more = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2));
  const radius = f(whole + more), share = Math.floor(f(2 ** 24 / f(radius * 2 + 1)));
  const rest = Math.floor((2 ** 24 - (2 * whole + 1) * share) / 2);
  const { width, height, channels, data } = image, out = data.slice();
  const line = new Float64Array(Math.max(width, height));
  const blur = (start, step, length) => {
    const at = i => line[Math.min(Math.max(i, 0), length - 1)];
    for (let pass = 0; pass < 3; pass++) {
      for (let i = 0; i < length; i++) line[i] = out[start + i * step];
      let sum = 0;
      for (let i = -whole - 1; i < whole; i++) sum += at(i);
      for (let i = 0; i < length; i++) {
        sum += at(i + whole) - at(i - whole - 1);
        out[start + i * step] = Math.floor((sum * share + (at(i - whole - 1) + at(i + whole + 1)) * rest + 2 ** 23) / 2 ** 24);
      }
    }
  };
  for (let y = 0; y < height; y++) for (let c = 0; c < channels; c++) blur(y * width * channels + c, channels, width);
  for (let x = 0; x < width; x++) for (let c = 0; c < channels; c++) blur(x * channels + c, width * channels, height);
  return picture(width, height, channels, out);
}
