// Figures from timings. Nothing here knows of networks or of the page.

/** The q-quantile (0..1) of numbers in any order, interpolated between the two nearest. */
export function quantile(values, q) {
  const sorted = Float64Array.from(values).sort();
  const at = q * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (at - below) * (sorted[above] - sorted[below]);
}

export const median = (values) => quantile(values, 0.5);

/** 95 % percentile bootstrap of median(slim) / median(dense) over pairs of rounds. */
export function ratioInterval(dense, slim, resamples = 1000) {
  const random = seeded(1);
  const n = dense.length;
  const ratios = new Float64Array(resamples);
  const a = new Float64Array(n);
  const b = new Float64Array(n);
  for (let i = 0; i < resamples; i++) {
    for (let j = 0; j < n; j++) {
      const pick = Math.floor(random() * n);
      a[j] = dense[pick];
      b[j] = slim[pick];
    }
    ratios[i] = median(b) / median(a);
  }
  return [quantile(ratios, 0.025), quantile(ratios, 0.975)];
}

/** Random numbers in [0, 1) that are the same each time (mulberry32). */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
