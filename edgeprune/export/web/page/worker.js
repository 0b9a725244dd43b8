// Runs the networks away from the page, so that neither waits for the other. One worker does one task and ends.
//
// Takes  {task: "compare" | "staircase" | "width", manifest, threads, which}: `which` is the number of a width
// Gives  {kind: "progress", text, share} ... then {kind: "done", ...} or {kind: "failed", text}

import { clockStep, someNumbers, timeTogether } from "./measure.js";
import { Told, checkParity, fetchBytes, openNetwork, openSession, plain, reason } from "./networks.js";
import { median, quantile, ratioInterval } from "./statistics.js";
import { runWidth } from "./widths.js";

const COMPARISON = { rounds: 100, leastRounds: 5, warmup: 10, maxMs: 12_000 };
const ATTEMPTS = 3;
const WIDE = 0.1; // an interval of the ratio that is wider than this share of it judges nothing
const STAIR = { rounds: 15, leastRounds: 5, warmup: 2 };
const STAIR_QUANTILE = 0.25; // what else runs on the device only ever adds time: the quicker runs tell of the layer
const STAIR_SPREAD = 0.15;
const STAIRCASE_MS = 60_000;
const MOST_FOR_A_LAYER_MS = 3000;
const MOST_WEIGHT_BYTES = 128e6;

const TASKS = { compare, staircase, width: (ort, manifest, which) => runWidth(ort, manifest, which, { ...COMPARISON, step: clockStep() }, tell) };

const tell = (text, share = null) => postMessage({ kind: "progress", text, share });

onmessage = async ({ data }) => {
  try {
    const ort = await loadRuntime(data.threads);
    const result = await TASKS[data.task](ort, data.manifest, data.which);
    postMessage({ kind: "done", runtime: `onnxruntime-web ${ort.env.versions.web}`, threads: data.threads, ...result });
  } catch (error) {
    postMessage({ kind: "failed", text: error instanceof Told ? error.message : `The measurement failed: ${reason(error)}` });
  }
};

async function loadRuntime(threads) {
  tell("Loading onnxruntime-web");
  let ort;
  try {
    ort = await import("./runtime/ort.wasm.min.js");
  } catch (error) {
    throw new Told(`onnxruntime-web could not be loaded: ${reason(error)}`);
  }
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = {
    mjs: new URL("runtime/ort-wasm-simd-threaded.js", import.meta.url).href,
    wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
  };
  ort.env.logLevel = "error";
  return ort;
}

// --- dense beside slim

async function compare(ort, manifest) {
  const opened = {};
  const parity = {};
  for (const [name, network] of Object.entries(manifest.networks)) {
    opened[name] = await openNetwork(ort, network, (doing, share) => tell(`${doing} the ${name} network`, share));
    tell(`Checking the ${name} network`, 0);
    parity[name] = await checkParity(opened[name], network, manifest.tolerance, manifest.task, (done, of) =>
      tell(`Checking the ${name} network: ${done} of ${of}`, done / of),
    );
  }
  const step = clockStep();
  const [dense, slim] = ["dense", "slim"].map((name) => parity[name].answers);
  const inputs = opened.dense.feeds.slice(0, dense.length).map((feed) => Object.entries(feed).map(([name, x]) => plain(name, x)));
  const runners = ["dense", "slim"].map((name) => () => opened[name].session.run(opened[name].feeds[0]));
  return { parity, answers: { dense, slim, inputs }, clock_ms: step, ...(await judged(runners, step)) };
}

/** Measure, and measure again while the figures are too far apart to judge by; the narrowest attempt counts. */
async function judged(runners, step) {
  let best = null;
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const what = attempt === 1 ? "Timing both" : `The device is busy: timing again (${attempt} of ${ATTEMPTS})`;
    const { times, repeats } = await timeTogether(runners, { ...COMPARISON, step }, (done, of) =>
      tell(`${what}: round ${done} of ${of}`, done / of),
    );
    const found = { attempt, repeats, ...figures(times) };
    if (best === null || found.spread < best.spread) best = found;
    if (best.spread <= WIDE) break;
  }
  return { ...best, busy: best.spread > WIDE };
}

function figures([dense, slim]) {
  const of = (times) => ({ p50_ms: median(times), p95_ms: quantile(times, 0.95), times_ms: times });
  const interval = ratioInterval(dense, slim);
  const ratio = median(slim) / median(dense);
  return { dense: of(dense), slim: of(slim), ratio, interval, spread: (interval[1] - interval[0]) / ratio };
}

// --- the staircase

async function staircase(ort, manifest) {
  const layers = grouped(manifest.probes);
  tell("Fetching the layers", 0);
  const size = manifest.probes.reduce((total, probe) => total + probe.bytes, 0);
  const models = await fetchBytes("probes.bin", size, (done) => tell("Fetching the layers", done / size));
  const step = clockStep();
  const maxMs = Math.min(MOST_FOR_A_LAYER_MS, STAIRCASE_MS / layers.size) / ATTEMPTS;
  const [points, failures] = [[], []];
  let done = 0;
  for (const [layer, probes] of layers) {
    tell(`Layer ${done + 1} of ${layers.size}: ${layer}`, done / layers.size);
    const found = [];
    for (const some of inMemory(probes)) {
      try {
        found.push(...(await timeLayer(ort, models, some, { ...STAIR, maxMs, step })));
      } catch (error) {
        failures.push({ layer, text: error instanceof Told ? error.message : reason(error) });
      }
    }
    if (found.length) postMessage({ kind: "layer", layer, points: found });
    points.push(...found);
    done += 1;
  }
  if (!points.length) throw new Told(`None of the ${layers.size} layers could be measured: ${failures[0].text}`);
  return { points, failures };
}

function grouped(probes) {
  const layers = new Map();
  for (const probe of probes) layers.set(probe.layer, [...(layers.get(probe.layer) ?? []), probe]);
  return layers;
}

/** The widths of a layer in parts whose weights a phone can hold at once. */
function inMemory(probes) {
  const parts = [];
  let held = Infinity;
  for (const probe of probes) {
    if (held + probe.weight_bytes > MOST_WEIGHT_BYTES) {
      parts.push([]);
      held = 0;
    }
    parts[parts.length - 1].push(probe);
    held += probe.weight_bytes;
  }
  return parts;
}

/** One layer at some widths, timed side by side. */
async function timeLayer(ort, models, probes, timing) {
  const sessions = [];
  try {
    const runners = [];
    for (const probe of probes) {
      const { layer, width_in, width_out, offset, bytes } = probe;
      const name = `${layer} of ${width_in} and ${width_out} channels`;
      const session = await openSession(ort, models.slice(offset, offset + bytes), name);
      sessions.push(session);
      const feed = feedOf(ort, probe);
      runners.push(() => session.run(feed));
    }
    const times = await settled(runners, timing);
    return probes.map(({ layer, width_in, width_out }, i) => {
      return { layer, width_in, width_out, ms: quantile(times[i], STAIR_QUANTILE) };
    });
  } finally {
    for (const session of sessions) await session.release();
  }
}

/** Times of a layer, measured again and added to while some width has hardly any near its quickest. */
async function settled(runners, timing) {
  const all = runners.map(() => []);
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const { times } = await timeTogether(runners, timing);
    times.forEach((one, i) => all[i].push(...one));
    if (all.every((one) => quantile(one, STAIR_QUANTILE) <= (1 + STAIR_SPREAD) * Math.min(...one))) break;
  }
  return all;
}

function feedOf(ort, probe) {
  const tensors = probe.inputs.map(({ name, shape }) => {
    const count = shape.reduce((product, size) => product * size, 1);
    return [name, new ort.Tensor("float32", someNumbers(count), shape)];
  });
  return Object.fromEntries(tensors);
}
