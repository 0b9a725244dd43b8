// What both networks answer on the first inputs, shown as their task asks for: numbers, labels, masks or raw outputs.
//
// An answer is {name, shape, values} of one run; `answers` has the runs of dense and of slim, and the inputs of dense,
// several a run.

const MOST_SAMPLES = 4;
const MOST_NUMBERS = 6;
const MOST_LABELS = 12;
const THRESHOLD = 0.5; // of a label's probability

/** The elements of the section, for a task of the manifest: {kind, unit, labels, ignore}. */
export function answersShown(task, answers) {
  const samples = samplesOf(answers).slice(0, MOST_SAMPLES);
  const fits = { values: isRow, flags: isRow, masks: isMap }[task.kind] ?? (() => false);
  const one = samples.length && samples.every((sample) => sample.dense.length === 1 && sample.slim.length === 1);
  if (one && samples.every((sample) => fits(sample.dense[0]) && same(sample.dense[0], sample.slim[0]))) {
    return { values: numbersShown, flags: labelsShown, masks: masksShown }[task.kind](task, samples);
  }
  return rawShown(task, samples);
}

// --- samples

/** One a row of every run: the outputs of both networks, and the inputs. */
function samplesOf({ dense, slim, inputs }) {
  const samples = [];
  for (let run = 0; run < Math.min(dense.length, slim.length); run++) {
    const rows = inputs[run][0].shape[0];
    for (let row = 0; row < rows; row++) {
      const of = (tensors) => tensors.map((tensor) => rowOf(tensor, row, rows));
      samples.push({ dense: of(dense[run]), slim: of(slim[run]), inputs: of(inputs[run]) });
    }
  }
  return samples;
}

/** An output without the batch; one that has none belongs to every sample. */
function rowOf({ name, shape, values }, row, rows) {
  if (shape.length === 0 || shape[0] !== rows) return { name, shape, values };
  const size = values.length / rows;
  return { name, shape: shape.slice(1), values: values.subarray(row * size, (row + 1) * size) };
}

const isRow = ({ shape }) => shape.length <= 1;
const isMap = ({ shape }) => shape.length === 3;
const same = (one, other) => String(one.shape) === String(other.shape);

// --- numbers

function numbersShown({ unit }, samples) {
  const off = samples.flatMap(({ dense, slim }) => [...dense[0].values].map((value, i) => Math.abs(value - slim[0].values[i])));
  const head = ["input", "dense", "slim", "slim − dense"].map((text, i) => (i && unit ? `${text}, ${unit}` : text));
  const rows = samples.map(({ dense, slim }, i) => {
    const [a, b] = [dense[0].values, slim[0].values];
    return [`${i + 1}`, numbers(a), numbers(b), numbers(a.map((value, k) => b[k] - value), true)];
  });
  const mean = `${number(off.reduce((sum, value) => sum + value, 0) / off.length)} ${unit}`.trim();
  return [note(`On ${these(samples)} both are ${mean} apart on average.`), table(head, rows)];
}

const number = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString().replace("-", "−") : "not a number");

/** The first of some numbers, e.g. "1.5, −2, … (10 in all)". */
function numbers(values, signed = false) {
  const said = (value) => (signed && value > 0 ? `+${number(value)}` : number(value));
  const shown = Array.from(values.slice(0, MOST_NUMBERS), said).join(", ");
  return values.length > MOST_NUMBERS ? `${shown}, … (${values.length} in all)` : shown;
}

// --- labels

function labelsShown({ labels }, samples) {
  const holds = (values) => [...values].map((logit) => 1 / (1 + Math.exp(-logit)));
  let alike = 0;
  let all = 0;
  const rows = samples.map(({ dense, slim }, i) => {
    const pair = [holds(dense[0].values), holds(slim[0].values)];
    pair[0].forEach((share, k) => {
      alike += share > THRESHOLD === pair[1][k] > THRESHOLD ? 1 : 0;
      all += 1;
    });
    return [`${i + 1}`, ...pair.map((shares) => labelText(shares, labels))];
  });
  const told = `Labels with a probability above ${THRESHOLD}. On ${these(samples)} ${alike} of ${all} labels are the same.`;
  return [note(told), table(["input", "dense", "slim"], rows)];
}

function labelText(shares, labels) {
  const held = shares.map((share, i) => [share, i]).filter(([share]) => share > THRESHOLD).sort((a, b) => b[0] - a[0]);
  const shown = held.slice(0, MOST_LABELS).map(([share, i]) => `${labels[i] ?? `label ${i}`} ${share.toFixed(2)}`).join(", ");
  if (!held.length) return "none";
  return held.length > MOST_LABELS ? `${shown}, … (${held.length} in all)` : shown;
}

// --- masks

function masksShown({ labels }, samples) {
  let alike = 0;
  let all = 0;
  const seen = new Set();
  const figures = samples.map(({ dense, slim, inputs }, i) => {
    const pair = [classesOf(dense[0]), classesOf(slim[0])];
    const apart = pair[0].reduce((count, one, k) => count + (one === pair[1][k] ? 0 : 1), 0);
    alike += pair[0].length - apart;
    all += pair[0].length;
    pair.forEach((mask) => mask.forEach((one) => seen.add(one)));
    const [height, width] = dense[0].shape.slice(1);
    const picture = pictureOf(inputs, height, width);
    const drawn = pair.map((mask, k) => drawing(["dense", "slim"][k], mask, picture, height, width));
    return figure([...drawn], `input ${i + 1}: ${apart} of ${pair[0].length} pixels differ`);
  });
  const [height, width] = samples[0].dense[0].shape.slice(1);
  const over = pictureOf(samples[0].inputs, height, width) ? "The masks lie over the input. " : "No input is a picture of the masks' size, so they stand alone. ";
  const told = `${over}On ${these(samples)} ${((100 * alike) / all).toFixed(1)} % of the pixels are given the same class.`;
  return [note(told), legend([...seen].sort((a, b) => a - b), labels), beside(figures)];
}

/** The best class of each pixel; a single channel is the logit of class 1. */
function classesOf({ shape, values }) {
  const [n, size] = [shape[0], shape[1] * shape[2]];
  return Array.from({ length: size }, (_, at) => {
    if (n === 1) return values[at] > 0 ? 1 : 0;
    let best = 0;
    for (let k = 1; k < n; k++) if (values[k * size + at] > values[best * size + at]) best = k;
    return best;
  });
}

/** The first input that is a picture of that size, as shades; null where none is. */
const pictureOf = (inputs, height, width) => inputs.map((one) => greyOf(one, height, width)).find((grey) => grey) ?? null;

/** An input as shades from 0 to 255, its channels together; null where it is no picture of that size. */
function greyOf({ shape, values }, height, width) {
  if (shape.length !== 3 || shape[1] !== height || shape[2] !== width) return null;
  const size = height * width;
  const mean = Array.from({ length: size }, (_, at) => {
    let sum = 0;
    for (let k = 0; k < shape[0]; k++) sum += values[k * size + at];
    return sum / shape[0];
  });
  const [low, high] = [Math.min, Math.max].map((most) => mean.reduce((one, other) => most(one, other)));
  return mean.map((value) => (high > low ? (255 * (value - low)) / (high - low) : 128));
}

/** A colour of each class, far from those of its neighbours. */
function colour(one) {
  const hue = (one * 137.5 + 190) % 360;
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.52 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

function drawing(name, mask, picture, height, width) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height, canvas.className] = [width, height, "mask"];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `the mask of ${name}`);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  mask.forEach((one, at) => {
    const shade = picture ? picture[at] : 0;
    const share = picture ? 0.5 : 1;
    colour(one).forEach((value, k) => (image.data[4 * at + k] = share * value + (1 - share) * shade));
    image.data[4 * at + 3] = 255;
  });
  context.putImageData(image, 0, 0);
  const item = document.createElement("div");
  item.append(canvas, note(name));
  return item;
}

function legend(classes, labels) {
  const list = note("");
  for (const one of classes.slice(0, MOST_LABELS)) {
    const key = document.createElement("canvas");
    [key.width, key.height, key.className] = [1, 1, "key"];
    const context = key.getContext("2d");
    context.fillStyle = `rgb(${colour(one).join(",")})`;
    context.fillRect(0, 0, 1, 1);
    list.append(key, `${labels[one] ?? `class ${one}`}  `);
  }
  if (classes.length > MOST_LABELS) list.append(`and ${classes.length - MOST_LABELS} more`);
  return list;
}

function beside(elements) {
  const row = document.createElement("div");
  row.className = "masks";
  row.append(...elements);
  return row;
}

function figure(drawn, caption) {
  const [element, text] = ["figure", "figcaption"].map((tag) => document.createElement(tag));
  text.className = "note";
  text.textContent = caption;
  element.append(beside(drawn), text);
  return element;
}

// --- raw outputs

function rawShown({ kind, metric }, samples) {
  const rows = samples.flatMap(({ dense, slim }, i) =>
    dense.map((output, k) => {
      const other = slim[k];
      const matches = other && same(output, other);
      const off = matches ? `${(100 * relativeError(output.values, other.values)).toFixed(2)} %` : "other shapes";
      return [`${i + 1}`, output.name, output.shape.join("×") || "1", numbers(output.values), other ? numbers(other.values) : "none", off];
    }),
  );
  const why =
    kind === "none"
      ? "There are no labels: the slim network is to answer as the dense one does. These are the raw outputs of both."
      : kind === "other"
        ? `What ${metric} makes of the outputs is code that does not run here: these are the raw outputs of both.`
        : "The outputs cannot be shown as answers here: these are the raw outputs of both.";
  return [note(why), table(["input", "output", "shape", "dense", "slim", "relative error"], rows)];
}

/** `|slim − dense| / |dense|`; where nothing is wanted, any answer but nothing is wholly wrong. */
function relativeError(want, got) {
  let [off, size] = [0, 0];
  want.forEach((value, i) => {
    off += (value - got[i]) ** 2;
    size += value ** 2;
  });
  return size ? Math.sqrt(off / size) : Math.sign(off);
}

// --- elements

const these = (samples) => (samples.length === 1 ? "this input" : `these ${samples.length} inputs`);

function note(text) {
  const element = document.createElement("p");
  element.className = "note";
  element.textContent = text;
  return element;
}

function table(head, rows) {
  const line = (cells, tag) => {
    const row = document.createElement("tr");
    row.append(
      ...cells.map((text) => {
        const cell = document.createElement(tag);
        cell.textContent = text;
        return cell;
      }),
    );
    return row;
  };
  const [element, top, body, around] = ["table", "thead", "tbody", "div"].map((tag) => document.createElement(tag));
  top.append(line(head, "th"));
  body.append(...rows.map((cells) => line(cells, "td")));
  element.append(top, body);
  around.className = "scroll";
  around.append(element);
  return around;
}
