// A week of one doctor, or a day of several side by side. A click on a free time books; what is dragged moves.
import { doctors, get, is, mayChange, me, patch } from "./api.js";
import { WEEK, clock, dayOf, ends, hour, minutesBetween, minutesOf, monday, niceDay, now, plusDays, shortDay, time, today, weekday } from "./clock.js";
import { Booking } from "./booking.js";
import { gaps } from "./today.js";
import { Choice, Loaded, Tick, Wrong, go, html, name, say, useLayoutEffect, useLoad, useRef, useState, word } from "./parts.js";

const SCALE = 1.15; // pixels a minute
const SNAP = 5; // minutes
const DAY = 1440;
const place = (from, to) => ({ top: `${from * SCALE}px`, height: `${Math.max(to - from, 12) * SCALE}px` });
const within = (day, from, to) => [Math.max(0, minutesBetween(day, from)), Math.min(DAY, minutesBetween(day, to))]; // minutes of a day

// The parts of a day that are in none of these spans of minutes.
function outside(spans) {
  let at = 0;
  const found = [];
  for (const [from, to] of [...spans].sort((a, b) => a[0] - b[0])) { if (from > at) found.push([at, from]); at = Math.max(at, to); }
  return at < DAY ? [...found, [at, DAY]] : found;
}

// What overlaps is set side by side: each gets its lane, and how many there are.
function lanes(entries) {
  let group = [], until = 0;
  const close = () => group.forEach((one) => { one.of = Math.max(...group.map(({ lane }) => lane)) + 1; });
  for (const one of entries.sort((a, b) => a.from - b.from || b.to - a.to)) {
    if (one.from >= until) { close(); group = []; }
    one.lane = [...group.keys(), group.length].find((lane) => !group.some((other) => other.lane === lane && other.to > one.from));
    group.push(one);
    until = Math.max(until, one.to);
  }
  close();
  return entries;
}

async function week(doctor, first) {
  const last = plusDays(first, 6);
  const [appointments, hours, absences] = await Promise.all([
    get("/appointment", { user_id: doctor, from: first, to: last }), get(`/user/${doctor}/hours`), get(`/user/${doctor}/absences`)]);
  return WEEK.map((_, index) => {
    const day = plusDays(first, index);
    const open = hours.filter((span) => span.weekday === WEEK[index]).map(({ from, to }) => [minutesOf(`${day}T${from}`), minutesOf(`${day}T${to}`)]);
    return {
      key: day, day, doctor, title: shortDay(day),
      appointments: appointments.filter((one) => dayOf(one.appointment_datetime) <= day && ends(one) > `${day}T00:00`),
      closed: hours.length ? outside(open) : [],
      away: absences.filter((one) => dayOf(one.starts_at) <= day && one.ends_at.slice(0, 16) > `${day}T00:00`)
        .map((one) => ({ span: within(day, one.starts_at, one.ends_at), reason: one.reason })),
    };
  });
}

async function sideBySide(day) {
  const [people, appointments, free] = await Promise.all([
    doctors(), get("/appointment", { on: day }), day < today() ? [] : get("/slots", { from: day, to: day, minutes: 15, limit: 500 })]);
  return people.map((one) => {
    const own = appointments.filter((appointment) => appointment.user_id === one.id);
    const open = [...gaps(free.filter((slot) => slot.user_id === one.id)).map(({ from, to }) => within(day, from, to)),
      ...own.map((appointment) => within(day, appointment.appointment_datetime, ends(appointment)))];
    return { key: one.id, day, doctor: one.id, title: name(one), appointments: own, closed: day < today() ? [] : outside(open), away: [] };
  });
}

function Column({ column, range, drag, onTime, onGrab }) {
  const [first, last] = range;
  const shift = first * 60;
  const entries = lanes(column.appointments.filter(({ status }) => status !== "cancelled").map((one) => {
    const [from, to] = within(column.day, one.appointment_datetime, ends(one));
    return { one, from, to };
  }));
  const click = (event) => {
    if (event.target !== event.currentTarget) return;
    const minutes = shift + Math.floor(event.offsetY / SCALE / 15) * 15;
    onTime(`${column.day}T${clock(minutes)}`);
  };
  const cut = ([from, to]) => place(Math.max(from, shift) - shift, Math.min(to, last * 60) - shift);
  const visible = ([from, to]) => to > shift && from < last * 60;
  const at = today() === column.day && minutesOf(now());
  return html`<div class="column" data-column=${column.key} onClick=${click} style=${{ height: `${(last - first) * 60 * SCALE}px`, backgroundSize: `100% ${60 * SCALE}px` }}>
    ${column.closed.filter(visible).map((span) => html`<div key=${span} class="closed" style=${cut(span)}></div>`)}
    ${column.away.filter(({ span }) => visible(span)).map(({ span, reason }) => html`<div key=${span} class="closed away" style=${cut(span)}>Away${reason && `: ${reason}`}</div>`)}
    ${entries.map(({ one, from, to, lane, of }) => html`
      <button key=${one.id} class=${`event ${one.status} ${drag?.one.id === one.id ? "dragged" : ""} ${to - from < 30 ? "short" : ""}`}
        style=${{ ...place(from - shift, to - shift), left: `${(lane / of) * 100}%`, width: `${100 / of}%` }} data-appointment=${one.id}
        onPointerDown=${(event) => onGrab(event, one)} onClick=${(event) => event.detail === 0 && onGrab(event, one)}>
        <strong>${hour(one.appointment_datetime)} ${one.patient_name}</strong><span>${one.reason}</span>
        <span class="unseen">, ${shortDay(column.day)}, ${word(one.status)}</span></button>`)}
    ${drag?.moved && drag.column === column.key && html`<div class="event ghost" style=${place(drag.minutes - shift, drag.minutes + drag.one.duration_minutes - shift)}>
      <strong>${clock(drag.minutes)} ${drag.one.patient_name}</strong></div>`}
    ${at !== false && visible([at, at + 1]) && html`<div class="nowline" style=${{ top: `${(at - shift) * SCALE}px` }}></div>`}</div>`;
}

export function Calendar({ parameters }) {
  const own = is("doctor") ? String(me().id) : "";
  const whose = parameters.of ?? own; // "" is everybody
  const day = parameters.on ?? today();
  const [hidden, setHidden] = useState([]);
  const [open, setOpen] = useState(null);
  const [drag, setDrag] = useState(null);
  const [refused, setRefused] = useState(null);
  const grid = useRef();
  const released = useRef();
  const latest = useRef();
  const [asked, ask] = useState(!whose); // the choice of doctors is loaded once it is wanted
  const people = useLoad(() => (asked || !whose ? doctors() : Promise.resolve([])), [asked || !whose]);
  const shown = useLoad(() => (whose ? week(Number(whose), monday(day)) : sideBySide(day)), [whose, whose ? monday(day) : day]);
  const columns = (shown.data ?? []).filter(({ key }) => !hidden.includes(key));
  latest.current = shown.data;
  const title = whose === own ? name(me()) : columns.flatMap(({ appointments }) => appointments)[0]?.doctor_name ?? "This doctor";
  useLayoutEffect(() => { // on a narrow screen the week begins with today
    const lane = grid.current?.querySelector(".lane.today");
    if (lane) grid.current.scrollLeft = lane.offsetLeft - lane.parentNode.offsetLeft - lane.parentNode.firstElementChild.offsetWidth;
  }, [shown.data]);
  const to = (fields) => go(`/calendar?${new URLSearchParams({ of: whose, on: day, ...fields })}`);
  const by = whose ? 7 : 1;

  const used = columns.flatMap((column) => [
    ...column.appointments.flatMap((one) => within(column.day, one.appointment_datetime, ends(one))),
    ...(column.closed.length ? outside(column.closed).flat() : [])]).filter((one) => one >= 0 && one <= DAY);
  const range = [Math.floor(Math.min(8 * 60, ...used) / 60), Math.ceil(Math.max(17 * 60, ...used) / 60)];

  const move = async (dragged) => {
    const { one, column, minutes } = dragged;
    const drop = () => setDrag((now_) => (now_ === dragged ? null : now_)); // else the next one is being dragged
    const target = columns.find(({ key }) => key === column);
    const wish = { appointment_datetime: `${target.day}T${clock(minutes)}`, user_id: target.doctor };
    if (wish.appointment_datetime === one.appointment_datetime.slice(0, 16) && wish.user_id === one.user_id) return drop();
    try {
      await patch(`/appointment/${one.id}`, wish, one.version);
      say(`${one.patient_name} is moved to ${time(wish.appointment_datetime)}.`);
      await shown.reload();
    } catch (error) {
      if (error.status === undefined) throw error;
      setRefused({ error, one });
      if (error.status === 412) await shown.reload();
    }
    drop();
  };

  // Follows the mouse from the press to the release. A press without a way opens the appointment. Where other columns are
  // shown by then, the mouse is over another time than it was: nothing moves.
  const grab = (event, one) => {
    if (event.type === "click") return setOpen({ appointment: one }); // by the keyboard
    if (event.button !== 0) return;
    const start = { x: event.clientX, y: event.clientY, grip: event.clientY - event.currentTarget.getBoundingClientRect().top };
    let now_ = { one, moved: false };
    const begun = shown.data;
    const follow = ({ clientX, clientY }) => {
      if (latest.current !== begun) return;
      if (!now_.moved && Math.hypot(clientX - start.x, clientY - start.y) < 5) return;
      if (!mayChange(one) || event.pointerType === "touch") return;
      const cells = [...grid.current.querySelectorAll(".column")];
      const cell = cells.find((each) => clientX < each.getBoundingClientRect().right) ?? cells.at(-1);
      const minutes = range[0] * 60 + (clientY - start.grip - cell.getBoundingClientRect().top) / SCALE;
      const key = columns[cells.indexOf(cell)].key;
      now_ = { one, moved: true, column: key, minutes: Math.min(DAY - SNAP, Math.max(0, Math.round(minutes / SNAP) * SNAP)) };
      setDrag(now_);
    };
    const stop = (last) => {
      for (const [name_, listener] of Object.entries(ways)) removeEventListener(name_, listener);
      if (now_.moved) {
        released.current = true; // the browser sends a click after the release, to the column
        setTimeout(() => { released.current = false; });
      }
      if (last.type === "keydown" || last.type === "pointercancel" || (now_.moved && latest.current !== begun)) setDrag(null);
      else if (!now_.moved) setOpen({ appointment: one });
      else move(now_);
    };
    const ways = { pointermove: follow, pointerup: stop, pointercancel: stop, keydown: (key) => key.key === "Escape" && stop(key) };
    setRefused(null);
    for (const [name_, listener] of Object.entries(ways)) addEventListener(name_, listener);
  };
  // As it was loaded after the refusal: somebody else may have moved it.
  const stays = refused && (columns.flatMap(({ appointments }) => appointments).find(({ id }) => id === refused.one.id) ?? refused.one);
  const names = new Map((people.data ?? []).map((one) => [String(one.id), name(one)]));
  return html`<div class="head"><div><h1>Calendar</h1><p class="quiet">${whose ? `${shortDay(monday(day))} – ${shortDay(plusDays(monday(day), 6))} ${plusDays(monday(day), 6).slice(0, 4)}` : niceDay(day)}</p></div>
      <div class="tools">
        <${Choice} label="Doctor" class="slim" value=${whose} onFocus=${() => ask(true)} onPointerEnter=${() => ask(true)} onChange=${(event) => to({ of: event.target.value })}
          options=${[["", "All, side by side"], ...names, ...(whose && !names.has(whose) ? [[whose, title]] : [])]} />
        <span class="group"><button onClick=${() => to({ on: plusDays(day, -by) })} aria-label="Earlier">‹</button>
          <button onClick=${() => to({ on: today() })}>Today</button><button onClick=${() => to({ on: plusDays(day, by) })} aria-label="Later">›</button></span>
        <button class="main" onClick=${() => setOpen({ doctor: Number(whose) || undefined, at: day > today() ? day : "" })}>Book…</button></div></div>
    ${!whose && names.size > 1 && html`<div class="chips" role="group" aria-label="Doctors shown">${[...names].map(([id, one]) => html`<${Tick} key=${id} label=${one}
      checked=${!hidden.includes(Number(id))} onChange=${(event) => setHidden(event.target.checked ? hidden.filter((key) => key !== Number(id)) : [...hidden, Number(id)])} />`)}</div>`}
    ${refused && html`<div class="refused"><${Wrong} error=${refused.error} /><p>${stays.patient_name} stays at ${time(stays.appointment_datetime)}.
      <button onClick=${() => setOpen({ appointment: stays })}>Choose another time…</button> <button onClick=${() => setRefused(null)}>Close</button></p></div>`}
    <${Loaded} of=${shown}><div class="calendar" ref=${grid} role="region" aria-label="Calendar" tabindex="0">
        <div class="axis"><div class="title"></div><div class="hours" style=${{ height: `${(range[1] - range[0]) * 60 * SCALE}px` }}>
          ${Array.from({ length: range[1] - range[0] }, (_, index) => html`<span key=${index} style=${{ top: `${index * 60 * SCALE}px` }}>${clock((range[0] + index) * 60)}</span>`)}</div></div>
        ${columns.map((column) => html`<div key=${column.key} class=${`lane ${column.day === today() && whose ? "today" : ""}`}><div class="title">${column.title}</div>
          <${Column} column=${column} range=${range} drag=${drag} onGrab=${grab}
            onTime=${(at) => released.current || (is("doctor") && column.doctor !== me().id) || setOpen({ at, doctor: column.doctor })} /></div>`)}</div>
      <p class="quiet">Shaded: ${whose ? "outside of the doctor’s hours, or away." : "not free."} A click on a free time books it. Drag an appointment to move it, or open it and change its time.</p>
    <//>${open && html`<${Booking} ...${open} onClose=${() => setOpen(null)} onDone=${() => { setOpen(null); setRefused(null); shown.reload(); }} />`}`;
}
