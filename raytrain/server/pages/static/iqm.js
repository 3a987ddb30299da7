// The interquartile mean of several runs' curves (Agarwal et al. 2021, "Deep Reinforcement Learning
// at the Edge of the Statistical Precipice"): at each place, the mean of the middle half.

// Sorted weights: of n values, a quarter is cut at each end, the values at the cuts in part.
export function iqm(values) {
  const sorted = [...values].sort((a, b) => a - b), cut = sorted.length / 4;
  let sum = 0, weight = 0;
  sorted.forEach((value, i) => {
    const share = Math.max(0, Math.min(i + 1, sorted.length - cut) - Math.max(i, cut));
    sum += share * value;
    weight += share;
  });
  return sum / weight;
}

export function quantile(values, q) {
  const sorted = [...values].sort((a, b) => a - b), place = (sorted.length - 1) * q, low = Math.floor(place);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (place - low);
}

// The value of a curve [[x, y], ...] (ascending) at x, between its points; null outside of it.
export function at(curve, x) {
  if (!curve.length || x < curve[0][0] || x > curve.at(-1)[0]) return null;
  let low = 0, high = curve.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (curve[middle][0] <= x) low = middle;
    else high = middle;
  }
  const [[x0, y0], [x1, y1]] = [curve[low], curve[high]];
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
}

// Curves -> {x, middle, low, high}: the interquartile mean and the quartiles, where all curves are.
export function over(curves, places = 200) {
  const known = curves.filter((c) => c.length);
  const first = Math.max(...known.map((c) => c[0][0])), last = Math.min(...known.map((c) => c.at(-1)[0]));
  if (!known.length || last <= first) return { x: [], middle: [], low: [], high: [] };
  const x = Array.from({ length: places }, (_, i) => first + ((last - first) * i) / (places - 1));
  const values = x.map((place) => known.map((c) => at(c, place)));
  return { x, middle: values.map(iqm), low: values.map((v) => quantile(v, 0.25)), high: values.map((v) => quantile(v, 0.75)) };
}
