// Timing in a browser: its clock is coarse, its cores grow warm, and other tabs want them too.

import { median, seeded } from "./statistics.js";

const STEPS_A_BLOCK = 20; // a block lasts this many steps of the clock, so that a step is at most 5 % of it
const LEAST_BLOCK_MS = 0.2;
const MOST_REPEATS = 4096;
const TELL_EVERY_MS = 100;

/** The step of performance.now() in milliseconds: 0.005 where the page is isolated, 0.1 to 1 where it is not. */
export function clockStep() {
  const steps = [];
  for (let i = 0; i < 15; i++) {
    const before = performance.now();
    let after = before;
    while (after === before) after = performance.now();
    steps.push(after - before);
  }
  return median(steps);
}

/** Milliseconds that `repeats` runs take, one after the other. */
async function blockOf(run, repeats) {
  const before = performance.now();
  for (let i = 0; i < repeats; i++) await run();
  return performance.now() - before;
}

/** How many runs of each make a block that the clock can tell from another. */
async function repeatsFor(runners, step) {
  const least = Math.max(STEPS_A_BLOCK * step, LEAST_BLOCK_MS);
  const repeats = [];
  for (const run of runners) {
    let n = 1;
    while (n < MOST_REPEATS && (await blockOf(run, n)) < least) n *= 2;
    repeats.push(n);
  }
  return repeats;
}

/**
 * Time runners side by side, round by round, so that what slows the device slows all of them; every other round goes
 * backwards, because who follows finds warm caches.
 *
 * Returns `{times, repeats}`: milliseconds a run, one list a runner, and how many runs each figure is the mean of.
 */
export async function timeTogether(runners, { rounds, leastRounds, warmup, maxMs, step }, tell = () => {}) {
  const started = performance.now();
  for (let i = 0; i < warmup && (i < 1 || performance.now() - started < maxMs / 4); i++) {
    for (const run of runners) await run();
  }
  const repeats = await repeatsFor(runners, step);
  const times = runners.map(() => []);
  const order = runners.map((_, i) => i);
  let told = 0;
  for (let round = 0; round < rounds; round++) {
    const now = performance.now();
    if (round >= leastRounds && now - started > maxMs) break;
    if (now - told > TELL_EVERY_MS) {
      tell(round, rounds);
      told = now;
    }
    for (const i of order) times[i].push((await blockOf(runners[i], repeats[i])) / repeats[i]);
    order.reverse();
  }
  return { times, repeats };
}

/** Numbers in [-1, 1), the same each time. */
export function someNumbers(count) {
  const random = seeded(count);
  return Float32Array.from({ length: count }, () => 2 * random() - 1);
}
