// Things in one row of the chart, in order of time, at several levels: stages, modules ever deeper, and single steps.

class Level {
  // ``first`` has the index of each group's first item; a group ends where the next begins.
  constructor(series, name, first, depth = 0) {
    Object.assign(this, { series, name, first, depth, count: first.length, known: new Map() });
  }

  end(group) {
    return group + 1 < this.count ? this.first[group + 1] : this.series.count;
  }

  start(group) {
    return this.series.start[this.first[group]];
  }

  finish(group) {
    return this.series.finish[this.end(group) - 1];
  }

  // Groups that meet a time span: from, up to but not including.
  visible(from, to) {
    return [search(this.count, group => this.finish(group) >= from), search(this.count, group => this.start(group) > to)];
  }

  ids(group) {
    return this.series.ids.subarray(this.first[group], this.end(group));
  }

  // The group that holds an item.
  of(item) {
    return search(this.count, group => this.first[group] > item) - 1;
  }
}

// The first number below ``count`` of which ``holds`` holds, as it does of all after it.
function search(count, holds) {
  let low = 0, high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

class Series {
  constructor(ids, startOf, finishOf) {
    this.ids = Int32Array.from(ids).sort((a, b) => startOf(a) - startOf(b) || finishOf(a) - finishOf(b) || a - b);
    this.count = this.ids.length;
    this.start = Float64Array.from(this.ids, startOf);
    this.finish = Float64Array.from(this.ids, finishOf);
    this.item = new Map(Array.from(this.ids, (id, item) => [id, item]));
    this.levels = [];
    this.work = new Float64Array(this.count + 1); // of the items before each
    for (let item = 0; item < this.count; item++) this.work[item + 1] = this.work[item] + this.finish[item] - this.start[item];
  }

  // Groups of neighbours with equal keys. A level that tells no more than the one before is left out.
  level(name, key, depth = 0) {
    const first = [];
    let last;
    for (let item = 0; item < this.count; item++) {
      const its = key ? key(this.ids[item]) : item;
      if (!item || its !== last) first.push(item);
      last = its;
    }
    const made = new Level(this, name, Int32Array.from(first), depth), before = this.levels[this.levels.length - 1];
    if (before && before.count === made.count) this.levels.pop();
    this.levels.push(made);
    return this;
  }

  // The finest level whose bars can be told apart, at so many pixels per unit of time.
  choose(from, to, scale) {
    for (let i = this.levels.length - 1; i > 0; i--) {
      const level = this.levels[i], [low, high] = level.visible(from, to);
      if (low >= high || (high - low) * BAR <= (this.work[level.end(high - 1)] - this.work[level.first[low]]) * scale) return level;
    }
    return this.levels[0];
  }

  // How many of the items up to each are wanted, for asking of any group whether it has one.
  sums(wanted) {
    const sums = new Int32Array(this.count + 1);
    for (let item = 0; item < this.count; item++) sums[item + 1] = sums[item] + (wanted(this.ids[item]) ? 1 : 0);
    return sums;
  }
}

const BAR = 18; // pixels per bar, on average, below which bars are drawn by modules or stages

// Steps by stage, module and step.
function stepSeries(positions, startOf, finishOf) {
  const series = new Series(positions, startOf, finishOf);
  const paths = new Map();
  const path = run => {
    const { module } = nodeOf(run);
    if (!paths.has(module)) paths.set(module, module ? module.split('.') : []);
    return paths.get(module);
  };
  const keys = new Map();
  const key = (position, depth) => {
    const text = `${plan.steps[position].stage} ${path(position).slice(0, depth).join('.')}`;
    if (!keys.has(text)) keys.set(text, keys.size);
    return keys.get(text);
  };
  series.level('stage', position => plan.steps[position].stage);
  const deepest = Math.min(12, positions.reduce((most, position) => Math.max(most, path(position).length), 0));
  for (let depth = 1; depth <= deepest; depth++) series.level('module', position => key(position, depth), depth);
  return series.level('step', null);
}

// The lanes of the chart, each with rows: what was predicted, and what was measured.
function lanesOf() {
  const { steps, transfers, measured, devices } = plan, lanes = new Map();
  const lane = (name, kind, index, note) => {
    if (!lanes.has(name)) lanes.set(name, { name, kind, index, note, rows: [] });
    return lanes.get(name);
  };
  for (const device of devices) {
    const its = steps.flatMap((step, run) => step.device === device.index ? [run] : []);
    if (!its.length) continue;
    const made = lane(device.id, 'device', device.index, `${percent(plan.makespan ? device.busy / plan.makespan : 0)} busy`);
    made.rows.push({ kind: 'steps', measured: false, series: stepSeries(its, position => steps[position].start, position => steps[position].finish) });
    if (measured && measured.steps.length) {
      made.rows.push({ kind: 'steps', measured: true, series: stepSeries(its, position => measured.steps[position].start, position => measured.steps[position].finish) });
    }
  }
  for (const way of waysOf(plan)) {
    const made = lane(way.name, 'way', -1, size(way.bytes)), ids = way.moves.map(move => move.number);
    made.rows.push({ kind: 'sent', measured: false, series: new Series(ids, i => transfers[i].start, i => transfers[i].finish).level('transfer', null) });
    if (measured && measured.sent.length) {
      made.rows.push({ kind: 'sent', measured: true, series: new Series(ids, i => measured.sent[i].start, i => measured.sent[i].finish).level('transfer', null) });
    }
  }
  const seen = new Map();
  for (const bar of measured ? measured.bars : []) listed(seen, bar.where, bar);
  for (const [where, bars] of seen) {
    const made = lane(where, where.includes(' → ') ? 'way' : 'device', -1, 'measured only');
    made.rows.push({ kind: 'bars', measured: true, series: new Series(bars.map(bar => bar.index), i => measured.bars[i].start, i => measured.bars[i].finish).level('bar', null) });
  }
  return [...lanes.values()];
}
