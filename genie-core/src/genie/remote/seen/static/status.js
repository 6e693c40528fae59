'use strict';
// Asks the node for its numbers, and shows them and what changed since the last time. All that is shown is text.

const EVERY = 2000; // ms between two questions
const PATIENCE = 5000; // ms for an answer
const KEPT = 90; // points of a line

const at = id => document.getElementById(id);
const history = new Map();
let before = null;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function scaled(number, base, units) {
  let power = 0;
  while (Math.abs(number) >= base && power < units.length - 1) { number /= base; power++; }
  return `${number >= 100 || Number.isInteger(number) ? Math.round(number) : number.toPrecision(3)}${units[power] ? ' ' + units[power] : ''}`;
}

const bytes = number => scaled(number, 1024, ['B', 'KiB', 'MiB', 'GiB', 'TiB']);
const count = number => scaled(number, 1000, ['', 'k', 'M', 'G', 'T']);
const seconds = number => number === null ? '–'
  : number < 1e-3 ? `${(number * 1e6).toPrecision(3)} µs` : number < 1 ? `${(number * 1e3).toPrecision(3)} ms` : `${number.toPrecision(3)} s`;

function duration(number) {
  if (number < 120) return `${Math.max(0, Math.round(number))} s`;
  if (number < 7200) return `${Math.round(number / 60)} min`;
  if (number < 172800) return `${Math.round(number / 3600)} h`;
  return `${Math.round(number / 86400)} days`;
}

// The bound that a share of the latencies between two looks kept; null where there were none.
function quantile(now, then, bounds, share) {
  const total = now.count - (then ? then.count : 0);
  if (total <= 0) return null;
  const place = now.buckets.findIndex((number, index) => number - (then ? then.buckets[index] : 0) >= share * total);
  return place < 0 ? Infinity : bounds[place];
}

function tile(name, value, text) {
  const points = history.get(name) || [];
  points.push(value);
  if (points.length > KEPT) points.shift();
  history.set(name, points);
  const most = Math.max(...points, 1e-9);
  const picture = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  picture.setAttribute('viewBox', `0 0 ${KEPT - 1} 20`);
  picture.setAttribute('preserveAspectRatio', 'none');
  picture.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
  line.setAttribute('points', points.map((point, index) => `${KEPT - points.length + index},${19 - 18 * point / most}`).join(' '));
  picture.append(line);
  return element('div', { class: 'tile', 'data-name': name }, element('b', {}, text), element('span', {}, name), picture);
}

function fill(table, heads, rows, none) {
  if (!rows.length) {
    table.replaceChildren(element('tbody', {}, element('tr', {}, element('td', { class: 'none' }, none))));
    return;
  }
  const style = index => heads[index].number ? { class: 'number' } : {};
  table.replaceChildren(
    element('thead', {}, element('tr', {}, ...heads.map((head, index) => element('th', { scope: 'col', ...style(index) }, head.name)))),
    element('tbody', {}, ...rows.map(row => element('tr', {}, ...row.map((cell, index) => element('td', style(index), String(cell)))))),
  );
}

const columns = text => text.split(' ').map(name => name.endsWith('#') ? { name: name.slice(0, -1).replaceAll('_', ' '), number: true } : { name });

function show(view) {
  const then = before && before.started === view.started ? before : null;
  const span = then ? Math.max(view.time - then.time, 1e-3) : 0;
  const rate = name => then ? Math.max(0, view[name] - then[name]) / span : 0;
  const sum = counts => Object.values(counts).reduce((total, number) => total + number, 0);
  const requests = then ? Math.max(0, sum(view.requests) - sum(then.requests)) / span : 0;
  const executions = of => (of.requests.EXECUTE || 0) + of.iterations;
  const executed = then ? Math.max(0, executions(view) - executions(then)) / span : 0;

  document.title = `${view.address} · Genie node`;
  at('title').textContent = view.address;
  at('summary').textContent = `Genie ${view.genie} · up ${duration(view.time - view.started)} · ${view.sessions.length} of ${view.max_sessions} sessions`;
  at('state').textContent = view.draining ? 'draining' : 'serving';
  at('state').className = view.draining ? 'draining' : 'serving';

  at('rates').replaceChildren(
    tile('requests / s', requests, count(requests)),
    tile('executions / s', executed, count(executed)),
    tile('received / s', rate('bytes_in'), bytes(rate('bytes_in'))),
    tile('sent / s', rate('bytes_out'), bytes(rate('bytes_out'))),
    tile('CPU', then ? (view.process.cpu_seconds - then.process.cpu_seconds) / span : 0,
      then ? `${Math.round(100 * (view.process.cpu_seconds - then.process.cpu_seconds) / span)} %` : '–'),
    tile('sessions', view.sessions.length, String(view.sessions.length)),
    tile('failures / s', rate('failures'), count(rate('failures'))),
  );

  at('devices').replaceChildren(...view.devices.map(device => element('div', { class: 'device' },
    element('b', {}, device.id),
    element('meter', { min: 0, max: Math.max(device.memory_bytes, 1), value: device.used_bytes, 'aria-label': `Memory used of ${device.id}` }),
    element('span', { class: 'quiet' }, `${bytes(device.used_bytes)} of ${bytes(device.memory_bytes)} · ${device.sessions} sessions, ${device.busy} busy${device.away ? `, ${device.away} away` : ''}`))));

  fill(at('stages'), columns('stage p50# p99# all_time_mean# count#'), Object.entries(view.latencies).map(([stage, now]) => {
    const its = then && then.latencies[stage];
    return [stage, seconds(quantile(now, its, view.bounds, 0.5)), seconds(quantile(now, its, view.bounds, 0.99)),
      seconds(now.count ? now.seconds / now.count : null), count(now.count)];
  }), 'nothing yet');
  fill(at('sessions'), columns('session client device state age# executions# received# sent# memory# peak# plans#'),
    view.sessions.map(each => [each.id, each.client, each.device, each.away ? 'away' : each.busy ? 'busy' : 'idle', duration(view.time - each.since), count(each.executions),
      bytes(each.bytes_in), bytes(each.bytes_out), bytes(each.memory_bytes), bytes(each.peak_memory_bytes), each.plans]), 'no sessions');
  fill(at('tenants'), columns('tenant sessions# opened# requests# failures# received# sent# memory#'),
    view.tenants.map(each => [each.tenant, each.sessions, count(each.opened), count(each.requests), count(each.failures),
      bytes(each.bytes_in), bytes(each.bytes_out), bytes(each.memory_bytes)]), 'nobody yet');

  const of = (number, quota, say = String) => quota ? `${say(number)} of ${say(quota)}` : say(number);
  fill(at('quotas'), columns('tenant priority weight# sessions# waiting# memory# plans# device_time# held_back#'),
    view.reception.accounts.map(each => [each.tenant, each.priority, each.weight, of(each.sessions, each.sessions_quota),
      each.waiting, of(each.memory_bytes, each.memory_quota, bytes), of(each.plans, each.plans_quota),
      `${(100 * each.share).toFixed(1)} %`, duration(each.delayed_seconds)]), 'nobody yet');
  fill(at('queue'), columns('place# tenant priority waits_for#'),
    view.reception.queue.map(each => [each.position, each.tenant, each.priority, duration(each.seconds)]), 'nobody');

  const used = view.plan_hits + view.plan_misses;
  const facts = [
    ['requests', count(sum(view.requests))], ['operators', count(view.steps)], ['failed operators', count(view.failed_steps)],
    ['plan cache hits', used ? `${(100 * view.plan_hits / used).toFixed(1)} %` : '–'], ['plans received', count(view.plan_misses)],
    ['loop iterations', count(view.iterations)], ['batched executions', count(view.batched_executions)],
    ['failures', count(view.failures)], ...Object.entries(view.refused).map(([reason, number]) => [`refused: ${reason}`, count(number)]),
    ['contents kept', bytes(view.content.content_bytes || 0)], ['content hits', count(view.content.content_hits || 0)],
    ['resident memory', bytes(view.process.resident_bytes)], ['open files', view.process.open_files], ['threads', view.process.threads],
  ];
  at('counts').replaceChildren(...facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, String(value)))));
  before = view;
}

async function ask() {
  try {
    const answer = await fetch('status.json', { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    at('state').textContent = 'no answer';
    at('state').className = 'silent';
  }
  setTimeout(ask, EVERY);
}

ask();
