// Networks and tensors from the files beside the page, and whether outputs are what was expected.

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  bool: Uint8Array,
};

const MOST_ANSWERS = 4; // runs whose outputs are kept for the page

/** An error whose message is for the reader of the page. */
export class Told extends Error {}

/** The bytes of a file of this folder; `tell(done)` hears how many there are so far. */
export async function fetchBytes(file, size, tell = () => {}) {
  let response;
  try {
    response = await fetch(new URL(file, import.meta.url));
  } catch (error) {
    throw new Told(`${file} could not be fetched: ${error.message}. Is the server still running?`);
  }
  if (!response.ok) throw new Told(`${file} could not be fetched: the server answered ${response.status}.`);
  const bytes = new Uint8Array(size);
  let done = 0;
  const reader = response.body.getReader();
  for (;;) {
    const part = await reader.read();
    if (part.done) break;
    if (done + part.value.length > size) throw new Told(`${file} is longer than the ${size} bytes that were exported.`);
    bytes.set(part.value, done);
    done += part.value.length;
    tell(done);
  }
  if (done < size) throw new Told(`${file} ends after ${done} of ${size} bytes. Export or upload it again.`);
  return bytes;
}

/** A session of onnxruntime-web for a model of `bytes`; `externalData` are the files that it reads weights from. */
export async function openSession(ort, bytes, file, externalData = []) {
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
  try {
    return await ort.InferenceSession.create(bytes, externalData.length ? { ...options, externalData } : options);
  } catch (error) {
    throw new Told(`onnxruntime-web cannot load ${file}: ${reason(error)}`);
  }
}

/** The numbers of a tensor's file, one array a run. */
async function readRuns(tensor, runs) {
  const bytes = await fetchBytes(tensor.file, tensor.bytes);
  const each = bytes.length / runs;
  return Array.from({ length: runs }, (_, i) => bytes.slice(i * each, (i + 1) * each).buffer);
}

function typed(type, buffer) {
  if (type === "float16") return typeof Float16Array === "undefined" ? new Uint16Array(buffer) : new Float16Array(buffer);
  if (!(type in ARRAYS)) throw new Told(`This page does not know tensors of type ${type}.`);
  return new ARRAYS[type](buffer);
}

/** A network of the manifest, ready to run: `{session, feeds}`, with one feed a run; `tell(doing, share)` hears. */
export async function openNetwork(ort, network, tell, externalData = []) {
  const bytes = await fetchBytes(network.file, network.bytes, (done) => tell("Fetching", done / network.bytes));
  tell("Starting", null);
  const session = await openSession(ort, bytes, network.file, externalData);
  const feeds = Array.from({ length: network.runs }, () => ({}));
  for (const input of network.inputs) {
    const { name, type, shape } = input;
    const buffers = await readRuns(input, network.runs);
    buffers.forEach((buffer, run) => (feeds[run][name] = new ort.Tensor(type, typed(type, buffer), shape)));
  }
  return { session, feeds };
}

/**
 * Run every input and compare with what was expected: `{worst, allowed, runs, agrees, classes, answers}`.
 *
 * Only where classes are told apart is there a best class; of other tasks the first `MOST_ANSWERS` answers are kept.
 */
export async function checkParity(opened, network, tolerance, task, tell) {
  const expected = await Promise.all(network.outputs.map((output) => readRuns(output, network.runs)));
  const total = { worst: 0, allowed: 0, runs: network.runs, agrees: true, classes: null, answers: [] };
  for (let run = 0; run < network.runs; run++) {
    const got = await runOnce(opened.session, opened.feeds[run], network.file);
    network.outputs.forEach((output, i) => {
      const one = compared(numbers(output.type, expected[i][run]), got[output.name], output, tolerance);
      if (task?.kind !== "classes" || network.outputs.length > 1) one.classes = null; // of several, which holds the scores?
      merge(total, one);
    });
    if (task && run < MOST_ANSWERS) total.answers.push(network.outputs.map(({ name }) => plain(name, got[name])));
    tell(run + 1, network.runs);
  }
  return total;
}

/** A tensor as `{name, shape, values}`, which a worker can hand over. */
export function plain(name, tensor) {
  return { name, shape: [...tensor.dims], values: Float64Array.from(halves(tensor.data, tensor.type), Number) };
}

async function runOnce(session, feed, file) {
  try {
    return await session.run(feed);
  } catch (error) {
    throw new Told(`onnxruntime-web cannot run ${file}: ${reason(error)}`);
  }
}

function numbers(type, buffer) {
  return Float64Array.from(halves(typed(type, buffer), type), Number);
}

/** What came of one output of one run, beside what was expected. */
function compared(want, tensor, output, tolerance) {
  if (!tensor || String(tensor.dims) !== String(output.shape)) {
    return { worst: Infinity, allowed: tolerance, agrees: false, classes: null };
  }
  const got = Float64Array.from(halves(tensor.data, tensor.type), Number);
  let [worst, largest] = [0, 1];
  for (let i = 0; i < want.length; i++) {
    const error = want[i] === got[i] ? 0 : Math.abs(want[i] - got[i]);
    worst = error <= worst ? worst : Number.isNaN(error) ? Infinity : error;
    if (Number.isFinite(want[i])) largest = Math.max(largest, Math.abs(want[i]));
  }
  const allowed = tolerance * largest;
  const classes = output.shape.length === 2 && output.shape[1] > 1 ? sameClasses(want, got, output.shape) : null;
  return { worst, allowed, agrees: worst <= allowed, classes };
}

function merge(total, one) {
  total.worst = Math.max(total.worst, one.worst);
  total.allowed = Math.max(total.allowed, one.allowed);
  total.agrees = total.agrees && one.agrees;
  if (one.classes) {
    const before = total.classes ?? { same: 0, of: 0 };
    total.classes = { same: before.same + one.classes.same, of: before.of + one.classes.of };
  }
}

function sameClasses(want, got, [rows, width]) {
  let same = 0;
  for (let row = 0; row < rows; row++) {
    const best = (values) => {
      const part = values.subarray(row * width, (row + 1) * width);
      return part.indexOf(part.reduce((most, value) => Math.max(most, value), -Infinity));
    };
    same += best(want) === best(got) ? 1 : 0;
  }
  return { same, of: rows };
}

/** float16 comes as its bits where the browser has no array of that type. */
function halves(values, type) {
  if (type !== "float16" || !(values instanceof Uint16Array)) return values;
  return Float64Array.from(values, (bits) => {
    const sign = bits & 0x8000 ? -1 : 1;
    const [exponent, fraction] = [(bits >> 10) & 0x1f, bits & 0x3ff];
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

/** An error of the runtime in one line; it throws numbers where WebAssembly itself failed. */
export function reason(error) {
  if (typeof error === "number") return "it ran out of memory, or failed inside WebAssembly.";
  const text = String(error?.message ?? error).split("\n")[0];
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
