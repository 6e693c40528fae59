// What is known of the chosen unit, and why.

class Details {
  constructor(on) {
    this.on = on;
    this.panel = document.getElementById('details');
    this.plan = plan && new PlanDetails(this.panel, on);
  }

  show(unit, picture) {
    this.panel.scrollTop = 0;
    this.panel.replaceChildren(...(unit < 0 ? this.graph() : isBox(unit) ? this.box(unit - firstBox, picture)
      : isNode(unit) ? this.node(nodes[unit]) : this.input(data.drawn[unit - firstInput].value)));
  }

  graph() {
    return [
      element('h2', {}, data.title),
      element('p', { class: 'quiet' }, 'Choose a node or a module. Double-click opens and closes modules.'),
      ...(plan ? this.plan.whole() : []),
      element('h3', {}, `This ${data.what}`),
      facts(data.facts),
    ];
  }

  box(number, picture) {
    const box = boxes[number], open = picture.open.has(number);
    const known = [['nodes', box.nodes.toLocaleString('en')]];
    if (box.flops) known.push(['FLOP', si(box.flops)]);
    if (box.bytes) known.push(['bytes', si(box.bytes, 'B')]);
    data.modes.forEach((mode, index) => {
      const words = [...box.words[index]].filter(([word]) => word >= 0).sort((a, b) => b[1] - a[1]);
      if (words.length) known.push([mode.name, words.map(([word, times]) => `${wordName(mode, word)} ${times.toLocaleString('en')}`).join(', ')]);
    });
    return [
      element('h2', {}, box.path || box.name),
      element('p', { class: 'quiet' }, box.type || (box.path ? 'modules' : '')),
      element('h3', {}, 'In it'), facts(known),
      element('button', { type: 'button', class: 'action', id: 'toggle', on: { click: () => this.on.toggle(number) } }, open ? 'Close module' : 'Open module'),
    ];
  }

  node(node) {
    const parts = [
      element('h2', {}, node.op),
      element('p', { class: 'quiet' }, `node #${node.id}${node.module ? ` in ${node.module}` : ''}${node.type ? ` (${node.type})` : ''}`),
    ];
    const chips = data.modes.filter(mode => node.words[mode.index] >= 0).map(mode => element('span', { class: 'chip', title: mode.name },
      element('i', { class: 'swatch', color: wordColor(mode, node.words[mode.index]) }), wordName(mode, node.words[mode.index])));
    if (chips.length) parts.push(element('div', { class: 'chips' }, ...chips));
    parts.push(element('code', {}, node.line));
    if (node.source) parts.push(element('p', { class: 'quiet', id: 'source' }, node.source));
    if (plan) parts.push(...this.plan.node(node.position));
    parts.push(element('h3', {}, 'Labels'), this.labels(node.labels));
    parts.push(element('h3', {}, 'Evidence'), evidence(node.evidence));
    if (node.takes.length) parts.push(element('h3', {}, 'Takes'), this.values([...new Set(node.takes)], node));
    if (node.makes.length) parts.push(element('h3', {}, 'Makes'), this.values(node.makes, node, true));
    return parts;
  }

  input(value) {
    const its = inputOf.get(value), [spec, residency, labels, why] = values[value];
    return [
      element('h2', {}, its.name || `%${value}`), element('p', { class: 'quiet' }, `input %${value}${residency ? `, ${residency}` : ''}`),
      element('code', {}, spec),
      element('h3', {}, 'Labels'), this.labels([...its.facts, ...labels]),
      element('h3', {}, 'Evidence'), evidence(why),
      element('h3', {}, 'Used by'), element('ul', { class: 'values' }, ...(users.get(value) || []).map(position => element('li', {}, this.link(position)))),
    ];
  }

  labels(numbers) {
    return numbers.length ? facts(numbers.map(number => data.labels[number])) : element('p', { class: 'quiet' }, 'None.');
  }

  link(position) {
    const node = nodes[position];
    return element('button', { type: 'button', class: 'link', on: { click: () => this.on.select(position) } }, `#${node.id} ${node.short}`);
  }

  values(numbers, node, made = false) {
    return element('ul', { class: 'values' }, ...numbers.map(value => {
      const [spec, residency, labels, why] = values[value], its = inputOf.get(value), from = maker.get(value);
      const line = element('li', {}, element('span', { class: 'spec' }, `%${value} ${spec}`));
      const words = [its && its.name, labels.length ? '' : residency, !made && node.writes.includes(value) && 'written in place', made && outputs.has(value) && 'output'];
      const known = words.filter(Boolean).join(', ');
      if (known) line.append(element('div', { class: 'quiet' }, known));
      const others = made ? users.get(value) || [] : from === undefined ? [] : [from];
      if (others.length) {
        const row = element('div', {}, made ? 'to ' : 'from ');
        others.slice(0, 8).forEach((position, index) => row.append(index ? ', ' : '', this.link(position)));
        if (others.length > 8) row.append(` and ${others.length - 8} more`);
        line.append(row);
      }
      if (labels.length || its && its.facts.length) line.append(facts([...(its ? its.facts : []), ...labels].map(number => data.labels[number])));
      if (why.length) line.append(evidence(why));
      return line;
    }));
  }
}

function facts(rows) {
  return element('dl', {}, ...rows.flatMap(([name, what]) => [element('dt', {}, name), element('dd', {}, what)]));
}

function evidence(numbers) {
  if (!numbers.length) return element('p', { class: 'quiet' }, 'None: nobody gave a reason for a label.');
  return element('ul', { class: 'evidence' }, ...numbers.map(number => {
    const [label, source, confidence, reason] = data.evidence[number];
    return element('li', {}, element('div', { class: 'by' }, element('b', {}, label.replaceAll('_', ' ')),
      element('span', {}, confidence === '1' ? source : `${source}, confidence ${confidence}`)), element('div', {}, reason));
  }));
}
