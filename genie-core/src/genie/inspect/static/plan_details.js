// What a plan says of what is chosen: a node, a transfer, a stage or module in one row, a device, a way.

class PlanDetails {
  constructor(panel, on) {
    Object.assign(this, { panel, on });
  }

  show(...parts) {
    this.panel.scrollTop = 0;
    this.panel.replaceChildren(...parts.flat().filter(Boolean));
  }

  link(run) {
    const { position } = plan.steps[run];
    return element('button', { type: 'button', class: 'link', on: { click: () => this.on.select(position) } }, `#${nodes[position].id} ${nodes[position].short}`);
  }

  moveLink(move) {
    return element('button', { type: 'button', class: 'link', on: { click: () => this.on.transfer(move) } }, `%${move.value} ${wayName(move.source, move.target)}`);
  }

  // In the details of a node.
  node(position) {
    const step = plan.steps[position], device = plan.devices[step.device];
    const rows = [
      ['device', device.id], ['rule', step.rule],
      ['estimate', `${duration(step.finish - step.start)} (${step.source}${step.error ? `, ±${percent(step.error)}` : ''})`],
      ['bound by', this.bound(step)],
      ['time', this.when(step)],
      ['critical path', step.critical ? element('span', { class: 'critical' }, 'on it') : 'not on it'],
      ['stage', `${step.stage + 1} of ${plan.stages.length}`],
      ['waits for', this.waits(step)],
      ...this.measured(position),
      ['run again on', plan.steps.filter(each => each.again && each.position === position).map(each => plan.devices[each.device].id).join(', ')],
    ];
    const arrivals = (plan.arriving.get(position) || []).filter(move => move.target === step.device);
    const others = step.elsewhere.map((seconds, index) => [plan.devices[index].id, duration(seconds)]).filter((_, index) => index !== step.device);
    return [
      element('h3', {}, 'In this plan'), facts(rows.filter(([, what]) => what)),
      arrivals.length ? [element('h3', {}, 'Arrives for it'), this.moves(arrivals)] : [],
      others.length ? [element('h3', {}, 'It alone elsewhere'), facts(others)] : [],
      plan.held.has(position) ? [element('h3', {}, 'Held by'), element('ul', { class: 'values' }, ...plan.held.get(position).map(text => element('li', {}, text)))] : [],
    ].flat();
  }

  when({ start, finish }) {
    const resolution = Math.max(1, (finish - start) / 10);
    return `${moment(start, resolution)} – ${moment(finish, resolution)}`;
  }

  // As plan.explain has it: the network, when the device waits longer for an operand than it works.
  bound(step) {
    if (step.waits !== plan.TRANSFER) return step.bound;
    const free = plan.steps.reduce((last, other) => other !== step && other.device === step.device && other.finish <= step.start ? Math.max(last, other.finish) : last, 0);
    const idle = step.start - free;
    return idle > step.finish - step.start ? `network: idle for ${duration(idle)} before${step.bound ? ` (itself: ${step.bound})` : ''}` : step.bound;
  }

  waits(each) {
    const { waits, on } = each;
    if (waits === plan.DEVICE || waits === plan.MADE) return on >= 0 ? this.link(on) : '';
    if (waits === plan.TRANSFER || waits === plan.SENDER || waits === plan.RECEIVER) {
      const move = plan.transfers[on], why = { [plan.SENDER]: ', sent before', [plan.RECEIVER]: ', received before' }[waits] || '';
      return element('span', {}, this.moveLink(move), `${why} (${size(move.bytes)}, ${duration(move.finish - move.start)})`);
    }
    return 'nothing: it begins with the plan';
  }

  measured(position) {
    const { measured } = plan, step = plan.steps[position];
    if (!measured) return [];
    if (measured.steps.length) {
      const its = measured.steps[position], took = its.finish - its.start;
      if (!step.again && !measured.known(position)) return [['measured', 'never: shown as predicted']];
      return [['measured', `${duration(took)} (${difference(step.finish - step.start, took)})`], ['measured at', this.when(its)]];
    }
    const bar = measured.ofStage.get(step.stage);
    return bar ? [[`stage ${step.stage + 1}`, this.compared(plan.stages[step.stage], bar)]] : [];
  }

  compared(positions, bar) {
    const predicted = positions.reduce((sum, position) => sum + plan.steps[position].finish - plan.steps[position].start, 0);
    return `measured ${duration(bar.finish - bar.start)}, predicted ${duration(predicted)} (${difference(predicted, bar.finish - bar.start)})`;
  }

  moves(list, most = 12) {
    const shown = list.slice(0, most).map(move => element('li', {}, this.moveLink(move),
      element('div', { class: 'quiet' }, `${size(move.bytes)} in ${duration(move.finish - move.start)}, there at ${moment(move.finish, (move.finish - move.start) / 10)}${move.critical ? ', critical' : ''}`)));
    if (list.length > most) shown.push(element('li', { class: 'quiet' }, `and ${(list.length - most).toLocaleString('en')} more`));
    return element('ul', { class: 'values' }, ...shown);
  }

  transfer(move) {
    const { measured } = plan, seen = measured && (measured.sent[move.number] || measured.ofTransfer.get(move.number));
    const [spec, residency] = values[move.value], took = move.finish - move.start, from = maker.get(move.value);
    const rows = [
      ['bytes', `${size(move.bytes)}`], ['takes', duration(took)], ['time', this.when(move)],
      ['link', linkText(move.source, move.target)],
      ['critical path', move.critical ? element('span', { class: 'critical' }, 'on it') : 'not on it'],
      ['made by', from === undefined ? `input ${inputOf.has(move.value) ? inputOf.get(move.value).name : ''}` : this.link(from)],
      ['waits for', this.waits(move)], ['needed by', this.link(move.before)],
      ['measured', seen && `${duration(seen.finish - seen.start)} (${difference(took, seen.finish - seen.start)})`],
    ];
    this.show(element('h2', {}, `%${move.value}, ${wayName(move.source, move.target)}`), element('p', { class: 'quiet' }, `transfer${residency ? `, ${residency}` : ''}`),
      element('code', {}, spec), element('h3', {}, 'In this plan'), facts(rows.filter(([, what]) => what)));
  }

  // A stage, or nodes of one module in a row.
  group(name, kind, positions, lane) {
    const work = positions.reduce((sum, position) => sum + plan.steps[position].finish - plan.steps[position].start, 0);
    const first = plan.steps[positions[0]], last = plan.steps[positions[positions.length - 1]];
    const critical = positions.filter(position => plan.steps[position].critical).length, { measured } = plan;
    const rows = [['nodes', positions.length.toLocaleString('en')], ['work', duration(work)], ['time', this.when({ start: first.start, finish: last.finish })],
      ['critical path', critical ? element('span', { class: 'critical' }, critical === positions.length ? 'on it' : `${critical.toLocaleString('en')} nodes on it`) : 'not on it'],
      ['waits for', this.waits(first)]];
    if (measured && measured.steps.length) {
      const took = positions.reduce((sum, position) => sum + measured.steps[position].finish - measured.steps[position].start, 0);
      const count = positions.filter(position => measured.known(position)).length;
      rows.push(['measured', `${duration(took)} (${difference(work, took)})`], ['of them measured', `${count.toLocaleString('en')} nodes`]);
    } else if (kind === 'stage' && measured && measured.ofStage.has(first.stage)) rows.push(['measured', this.compared(positions, measured.ofStage.get(first.stage))]);
    const longest = [...positions].sort((a, b) => plan.steps[b].finish - plan.steps[b].start - plan.steps[a].finish + plan.steps[a].start).slice(0, 8);
    this.show(element('h2', {}, name), element('p', { class: 'quiet' }, `${kind} on ${lane}`), element('h3', {}, 'In this plan'), facts(rows),
      element('h3', {}, 'Takes most'), element('ul', { class: 'values' }, ...longest.map(position => element('li', {}, this.link(position),
        element('span', { class: 'quiet' }, ` ${duration(plan.steps[position].finish - plan.steps[position].start)}`)))));
  }

  device(device) {
    const busy = plan.makespan ? device.busy / plan.makespan : 0, its = plan.steps.filter(step => step.device === device.index), { measured } = plan;
    const out = plan.transfers.filter(move => move.source === device.index), into = plan.transfers.filter(move => move.target === device.index);
    const total = list => `${list.length.toLocaleString('en')} values, ${size(list.reduce((sum, move) => sum + move.bytes, 0))}`;
    const rows = [['nodes', device.count.toLocaleString('en')], ['work', `${duration(device.busy)}, ${percent(busy)} of the time`]];
    if (measured) rows.push(['measured', `${duration(measured.busy[device.index])} (${difference(device.busy, measured.busy[device.index])})`]);
    rows.push(['memory', `${size(device.need)} of ${size(device.have)}`], ['speed', `${device.tflops} TFLOPS`],
      ...(device.bandwidth ? [['bandwidth', `${device.bandwidth} GB/s`]] : []), ['sends', total(out)], ['receives', total(into)]);
    const longest = its.sort((a, b) => b.finish - b.start - a.finish + a.start).slice(0, 8);
    this.show(element('h2', {}, device.id), element('p', { class: 'quiet' }, device.type), element('h3', {}, 'In this plan'), facts(rows),
      longest.length ? [element('h3', {}, 'Takes most'), element('ul', { class: 'values' }, ...longest.map(step => element('li', {}, this.link(step.position),
        element('span', { class: 'quiet' }, ` ${duration(step.finish - step.start)}`))))] : []);
  }

  way(way) {
    const link = linkText(way.source, way.target), share = plan.makespan ? way.busy / plan.makespan : 0;
    const largest = [...way.moves].sort((a, b) => b.bytes - a.bytes || a.number - b.number);
    this.show(element('h2', {}, way.name), element('p', { class: 'quiet' }, 'way between devices'), element('h3', {}, 'In this plan'),
      facts([['values', way.moves.length.toLocaleString('en')], ['bytes', size(way.bytes)], ['in use', `${duration(way.busy)}, ${percent(share)} of the time`],
        ...(link ? [['link', link]] : [])]),
      element('h3', {}, 'Largest first'), this.moves(largest));
  }

  // Something seen that is no part of the plan.
  bar(bar) {
    const stage = bar.stage >= 0 ? [['stage', `${bar.stage + 1}`], ['compared', this.compared(plan.stages[bar.stage], bar)]] : [];
    this.show(element('h2', {}, bar.what), element('p', { class: 'quiet' }, `measured, ${bar.where}`), element('h3', {}, `In the ${plan.measured.source}`),
      facts([['took', duration(bar.finish - bar.start)], ['time', this.when(bar)], ...(bar.bytes ? [['bytes', size(bar.bytes)]] : []), ...stage]));
  }

  // Of the plan as a whole.
  whole() {
    const { measured } = plan, rows = [['latency', `${duration(plan.makespan)} predicted`]];
    if (measured) rows.push(['measured', `${duration(measured.makespan)} (${difference(plan.makespan, measured.makespan)}), ${measured.source}${measured.note ? `: ${measured.note}` : ''}`]);
    rows.push(['bottleneck', plan.bottleneck], ['stages', plan.stages.length.toLocaleString('en')]);
    return [
      element('h3', {}, 'Time'), facts(rows),
      element('h3', {}, 'Critical path'), facts(plan.parts.slice(0, 8).map(([what, ns]) => [what, `${duration(ns)}, ${percent(plan.makespan ? ns / plan.makespan : 0)}`])),
      plan.parts.length > 8 ? element('p', { class: 'quiet' }, `and ${plan.parts.length - 8} more`) : '',
    ].filter(Boolean);
  }
}
