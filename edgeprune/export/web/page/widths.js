// One network at several widths: graphs read the same file of weights, where there is one, and a gate picks one for each
// input.

import { timeTogether } from "./measure.js";
import { checkParity, fetchBytes, openNetwork } from "./networks.js";
import { median } from "./statistics.js";

/** Check one width and time it beside the dense network: `{parity, p50_ms, ratio, picked}`, input by input in turn. */
export async function runWidth(ort, manifest, which, timing, tell) {
  const { weights, networks } = manifest.widths;
  const network = networks[which];
  const shared = [];
  if (weights) {
    const fetched = (done) => tell("Fetching the weights", done / weights.bytes);
    shared.push({ path: weights.file, data: await fetchBytes(weights.file, weights.bytes, fetched) });
  }
  const what = (doing, share) => tell(`${doing} width ${network.name}`, share);
  const opened = await openNetwork(ort, network, what, shared);
  const dense = await openNetwork(ort, manifest.networks.dense, (doing, share) => tell(`${doing} the dense network`, share));
  const parity = await checkParity(opened, network, manifest.tolerance, manifest.task, (done, of) => what("Checking", done / of));
  const picked = network.picks ? await picksOf(opened, network.picks) : null;
  const runners = [dense, opened].map(inTurn);
  const { times } = await timeTogether(runners, timing, (done, of) => what("Timing", done / of));
  const [densely, own] = times.map(median);
  return { parity, p50_ms: own, ratio: own / densely, picked };
}

/** How often each width is picked for the inputs of the page. */
async function picksOf({ session, feeds }, { output, widths }) {
  const counts = widths.map(() => 0);
  for (const feed of feeds) counts[Number((await session.run(feed))[output].data[0])] += 1;
  return widths.map((name, i) => ({ name, count: counts[i] }));
}

function inTurn({ session, feeds }) {
  let turn = 0;
  return () => session.run(feeds[turn++ % feeds.length]);
}
