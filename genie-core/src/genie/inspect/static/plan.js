// A plan's times and places as the page was given them, with what follows from them. Times are nanoseconds.

const plan = data.chart && readPlan(data.chart);

function readPlan(chart) {
  const [DEVICE, TRANSFER, MADE, SENDER, RECEIVER] = [1, 2, 3, 4, 5];
  const devices = chart.devices.map(([id, type, count, busy, need, have, tflops, bandwidth], index) =>
    ({ index, id, type, count, busy, need, have, tflops, bandwidth }));
  const steps = nodes.map((node, position) => {
    const [device, stage, rule, source, bound, elsewhere, error] = chart.steps.slice(7 * position, 7 * position + 7);
    const [start, finish, waits, on] = chart.times.slice(4 * position, 4 * position + 4);
    return { position, device, stage, rule: chart.rules[rule] || '', source: chart.sources[source], bound: chart.bounds[bound],
      elsewhere: chart.elsewhere[elsewhere], error, start, finish, waits, on, critical: false };
  });
  // What is run again, elsewhere, comes after all steps: a run is a step or one of these.
  for (let i = 0; i < chart.again.length / 3; i++) {
    const [position, device, before] = chart.again.slice(3 * i, 3 * i + 3);
    const [start, finish, waits, on] = chart.agains.slice(4 * i, 4 * i + 4);
    steps.push({ ...steps[position], device, stage: steps[before].stage, start, finish, waits, on, critical: false, again: true });
  }
  const transfers = [];
  for (let i = 0; i < chart.transfers.length / 5; i++) {
    const [value, source, target, before, bytes] = chart.transfers.slice(5 * i, 5 * i + 5);
    const [start, finish, waits, on] = chart.sent.slice(4 * i, 4 * i + 4);
    transfers.push({ number: i, value, source, target, before, bytes, start, finish, waits, on, critical: false });
  }
  chart.critical.forEach(position => { steps[position].critical = true; });
  chart.criticalSent.forEach(number => { transfers[number].critical = true; });
  const arriving = new Map();
  transfers.forEach(move => listed(arriving, move.before, move));
  const stages = Array.from({ length: chart.stages }, () => []);
  steps.forEach((step, run) => stages[step.stage].push(run));
  const held = new Map();
  chart.held.forEach(([text, its]) => its.forEach(position => listed(held, position, text)));
  return { ...chart, devices, steps, transfers, arriving, stages, held, measured: chart.measured && readMeasured(chart.measured),
    DEVICE, TRANSFER, MADE, SENDER, RECEIVER };
}

function listed(map, key, item) {
  if (!map.has(key)) map.set(key, []);
  map.get(key).push(item);
}

function readMeasured(chart) {
  const pairs = flat => Array.from({ length: flat.length / 2 }, (_, i) => ({ start: flat[2 * i], finish: flat[2 * i + 1] }));
  const bars = chart.bars.map(([where, what, start, finish, bytes, stage, transfer], index) =>
    ({ index, where, what, start, finish, bytes, stage, transfer }));
  const steps = [...pairs(chart.times), ...pairs(chart.again)];
  return {
    ...chart, steps, sent: pairs(chart.sent), bars, known: run => chart.known[run] === '1', // of a node; not of what is run again
    ofStage: new Map(bars.filter(bar => bar.stage >= 0).map(bar => [bar.stage, bar])),
    ofTransfer: new Map(bars.filter(bar => bar.transfer >= 0).map(bar => [bar.transfer, bar])),
  };
}

// The node of a run.
const nodeOf = run => nodes[plan.steps[run].position];

const wayName = (source, target) => `${plan.devices[source].id} → ${plan.devices[target].id}`;

function linkText(source, target) {
  const link = plan.links.find(([a, b]) => a === source && b === target);
  return link ? `${link[3] ? `${si(link[3], 'B')}/s, ` : ''}${duration(link[2])} latency` : '';
}

// What is over each way: what the plan sends there, its bytes and the time it is taken.
function waysOf({ transfers }) {
  const ways = new Map();
  for (const move of transfers) {
    const name = wayName(move.source, move.target);
    if (!ways.has(name)) ways.set(name, { name, source: move.source, target: move.target, moves: [], bytes: 0, busy: 0 });
    const way = ways.get(name);
    way.moves.push(move);
    way.bytes += move.bytes;
    way.busy += move.finish - move.start;
  }
  return [...ways.values()].sort((a, b) => a.source - b.source || a.target - b.target);
}

// How long, to three digits.
function duration(ns) {
  const size = Math.abs(ns);
  const [scale, unit] = size >= 1e9 ? [1e9, 's'] : size >= 1e6 ? [1e6, 'ms'] : [1e3, 'µs'];
  return `${Number((ns / scale).toPrecision(3))} ${unit}`;
}

// A point in time, as exactly as ``resolution`` needs.
function moment(ns, resolution) {
  const size = Math.max(Math.abs(ns), resolution);
  const [scale, unit] = size >= 1e9 ? [1e9, 's'] : size >= 1e6 ? [1e6, 'ms'] : [1e3, 'µs'];
  const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(resolution / scale) - 1e-9)));
  return `${(ns / scale).toFixed(digits).replace('-', '−')} ${unit}`;
}

function size(bytes) {
  for (const [scale, unit] of [[2 ** 40, 'TiB'], [2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) {
    if (bytes >= scale) return `${Number((bytes / scale).toPrecision(3))} ${unit}`;
  }
  return `${bytes} bytes`;
}

function percent(share) {
  return `${share >= 0.0001 && share < 0.01 ? Number((100 * share).toPrecision(2)) : Math.round(100 * share)}%`;
}

// How far what was measured is from what was predicted.
function difference(predicted, measured) {
  if (!predicted) return measured ? `+${duration(measured)}` : '±0%';
  const off = measured / predicted - 1;
  if (Math.abs(off) < 0.0005) return '±0%';
  return `${off >= 0 ? '+' : '−'}${percent(Math.abs(off))}`;
}
