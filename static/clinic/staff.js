// The staff: who waits for approval, roles, working hours, absences with their repair; one's own logins and password.
import { call, changePassword, forgetDoctors, get, is, me, patch, post, signOut } from "./api.js";
import { WEEK, hour, now, plusDays, shortDay, time, today } from "./clock.js";
import { NewAccount } from "./signin.js";
import { Choice, Dialog, Field, Loaded, Send, Tick, Word, Wrong, count, html, name, say, useLoad, useState, useSubmit, word } from "./parts.js";

const ROLES = ["doctor", "receptionist", "admin"];
const DAYS = { mon: "Monday", tue: "Tuesday", wed: "Wednesday", thu: "Thursday", fri: "Friday", sat: "Saturday", sun: "Sunday" };
const Active = ({ of }) => html`<span class=${`state ${of.is_active ? "completed" : "pending"}`}>${of.is_active ? "Active" : "Not active"}</span>`;

export function Staff() {
  const [adding, setAdding] = useState(false);
  const list = useLoad(() => get("/users", { sort: "last_name" }), []);
  const approve = useSubmit(async (user) => {
    await patch(`/user/${user.id}`, { is_active: true }, user.version);
    forgetDoctors();
    say(`${name(user)} can sign in now.`);
    await list.reload();
  });
  const all = list.data ?? [];
  return html`<div class="head"><div><h1>Staff</h1><p class="quiet">${count(all.filter((one) => one.is_active).length, "active member")}</p></div>
      ${is("admin") && html`<div class="tools"><button class="main" onClick=${() => setAdding(true)}>New member…</button></div>`}</div>
    <${Wrong} error=${approve.error} />
    <${Loaded} of=${list}><table class="rows"><thead><tr><th>Name</th><th>Role</th><th>Email</th><th>State</th>${is("admin") && html`<th><span class="unseen">Approval</span></th>`}</tr></thead>
      <tbody>${[...all].sort((a, b) => a.is_active - b.is_active).map((one) => html`<tr key=${one.id}>
        <td><a href=${`#/staff/${one.id}`}><strong>${one.last_name}</strong>, ${one.first_name}</a></td><td>${Word(word(one.role))}</td><td>${one.email}</td>
        <td><${Active} of=${one} /></td>
        ${is("admin") && html`<td>${!one.is_active && html`<button class="main" disabled=${approve.busy} onClick=${() => approve.submit(one)} aria-label=${`Approve ${name(one)}`}>Approve</button>`}</td>`}
      </tr>`)}</tbody></table><//>${adding && html`<${Dialog} title="New member of the staff" onClose=${() => setAdding(false)}>
      <${NewAccount} roles=${ROLES} submit="Make the account" onDone=${(user) => { setAdding(false); forgetDoctors(); say(`${name(user)} has an account.`); list.reload(); }} /><//>`}`;
}

function Rights({ user: given, onDone }) {
  const [user, setUser] = useState(given); // as it was when the edit began: it may be loaded again meanwhile
  const form = useSubmit(async (fields) => {
    const { keep_appointments, ...wish } = fields;
    const { body } = await patch(`/user/${user.id}`, { ...wish, ...(wish.is_active && { is_active: wish.is_active === "true" }), ...(keep_appointments && { keep_appointments: true }) }, user.version).catch((problem) => {
      if (problem.status === 412 && problem.body.current) {
        setUser(problem.body.current); // shown where nothing was typed
        problem.message = "Somebody else has changed this account meanwhile. Look it through, and save once more.";
      }
      throw problem;
    });
    forgetDoctors();
    setUser(body);
    say(`${name(body)} is saved.`);
    await onDone();
  });
  return html`<form class="card" onSubmit=${form.submit}><h2>Account</h2>
    <div class="row"><${Field} label="First name" name="first_name" required maxlength="100" defaultValue=${user.first_name} errors=${form.errors} />
      <${Field} label="Last name" name="last_name" required maxlength="100" defaultValue=${user.last_name} errors=${form.errors} /></div>
    <${Field} label="Email" name="email" type="email" required defaultValue=${user.email} errors=${form.errors} />
    ${is("admin") && html`<div class="row"><${Choice} label="Role" name="role" options=${ROLES} value=${user.role} errors=${form.errors} />
      <${Choice} label="State" name="is_active" options=${[["true", "Active"], ["false", "Not active"]]} value=${user.is_active} errors=${form.errors} /></div>`}
    ${form.error?.code === "has_appointments" && html`<${Tick} name="keep_appointments" label="Deactivate all the same; the appointments stay" />`}
    <${Wrong} error=${form.error} /><p class="actions"><${Send} of=${form}>Save<//></p></form>`;
}

function Hours({ user, may, loaded }) {
  const [edited, edit] = useState(null); // and the version that it began with: it may be loaded again meanwhile
  const shown = edited?.spans ?? loaded.data.body;
  const setSpans = (spans) => edit({ spans, etag: edited?.etag ?? loaded.data.etag });
  const save = useSubmit(async () => {
    await call("PUT", `/user/${user.id}/hours`, { json: shown, etag: edited.etag });
    say("The working hours are saved.");
    edit(null);
    await loaded.reload();
  });
  const change = (index, fields) => setSpans(shown.map((one, each) => (each === index ? { ...one, ...fields } : one)));
  const add = (weekday) => setSpans([...shown, { weekday, from: "08:00", to: "17:00" }]);
  return html`<section class="card"><h2>Working hours</h2>
    ${!shown.length && html`<p class="quiet">No hours of their own: can be booked at any time, and is offered in the clinic’s hours.</p>`}
    <div class="week">${WEEK.map((day) => html`<div key=${day} class="row"><span>${DAYS[day]}</span><div class="spans">
      ${shown.map((one, index) => one.weekday === day && html`<span key=${index} class="group">
        ${may ? html`<input type="text" inputmode="numeric" pattern="[0-2][0-9]:[0-5][0-9]" size="5" aria-label=${`${DAYS[day]} from`} value=${one.from} onInput=${(event) => change(index, { from: event.target.value })} />–
          <input type="text" inputmode="numeric" pattern="[0-2][0-9]:[0-5][0-9]" size="5" aria-label=${`${DAYS[day]} to`} value=${one.to} onInput=${(event) => change(index, { to: event.target.value })} />
          <button class="plain" aria-label=${`Remove ${DAYS[day]} ${one.from} to ${one.to}`} onClick=${() => setSpans(shown.filter((_, each) => each !== index))}>✕</button>`
        : `${one.from}–${one.to}`}</span>`)}
      ${may && html`<button class="plain" aria-label=${`Add hours on ${DAYS[day]}`} onClick=${() => add(day)}>+</button>`}
      ${!may && !shown.some((one) => one.weekday === day) && html`<span class="quiet">–</span>`}</div></div>`)}</div><${Wrong} error=${save.error} />
    ${may && html`<p class="actions">${edited && html`<button onClick=${() => { edit(null); save.forget(); loaded.reload(); }}>As before</button>`}
      <${Send} of=${save} disabled=${!edited || save.busy} onClick=${save.submit}>Save the hours<//></p>`}</section>`;
}

const Brief = ({ of }) => html`${time(of.appointment_datetime)}, ${of.patient_name}`;

// An absence with nothing in its way is saved at once. Where a colleague takes over, or appointments are cancelled, the
// request is sent twice: dry_run shows what would be done, then it is done.
function NewAbsence({ user, onDone, onClose }) {
  const [plan, setPlan] = useState(null);
  const [repairs, setRepairs] = useState(false);
  const colleagues = useLoad(() => get("/users", { role: "doctor", is_active: true, sort: "last_name" }), []);
  const typed = ({ currentTarget }) => {
    const { hand_over_to, cancel_rest } = Object.fromEntries(new FormData(currentTarget));
    setPlan(null);
    setRepairs(Boolean(hand_over_to || cancel_rest));
  };
  const form = useSubmit(async ({ starts_at, ends_at, reason, hand_over_to, cancel_rest }) => {
    const path = `/user/${user.id}/absences`;
    const json = { starts_at, ends_at, reason, ...(hand_over_to && { hand_over_to }), ...(cancel_rest && { cancel_rest: true }) };
    if (repairs && !plan) return setPlan((await call("POST", `${path}?dry_run=true`, { json })).body);
    const { body } = await post(path, json);
    say(`The absence is saved. ${count(body.handed_over.length, "appointment")} handed over, ${body.cancelled.length} cancelled.`);
    return onDone;
  });
  const conflicts = form.error?.body.conflicts;
  return html`<${Dialog} title=${`Absence of ${name(user)}`} wide onClose=${onClose}><form onSubmit=${(event) => (plan ? event.preventDefault() : form.submit(event))} onInput=${typed}>
    <div class="row"><${Field} label="From" name="starts_at" type="datetime-local" required defaultValue=${`${plusDays(today(), 1)}T00:00`} errors=${form.errors} />
      <${Field} label="To" name="ends_at" type="datetime-local" required defaultValue=${`${plusDays(today(), 2)}T00:00`} errors=${form.errors} /></div>
    <${Field} label="Reason" name="reason" maxlength="2000" hint="Shown to the person, the desk and administrators alone." errors=${form.errors} />
    <${Choice} label="Appointments go to" name="hand_over_to" errors=${form.errors}
      options=${[["", "Nobody"], ...(colleagues.data ?? []).filter(({ id }) => id !== user.id).map((one) => [one.id, name(one)])]} />
    <${Tick} name="cancel_rest" label="Cancel the appointments that nobody can take" /><${Wrong} error=${form.error} />
    ${conflicts && html`<ul class="plainlist">${conflicts.map((one) => html`<li key=${one.id}><${Brief} of=${one} /></li>`)}
      ${form.error.body.total > conflicts.length && html`<li>and ${form.error.body.total - conflicts.length} more</li>`}</ul>`}
    ${plan && html`<section class="plan" role="status"><h3>What will be done</h3>
      <p>${count(plan.handed_over.length, "appointment is", "appointments are")} handed over, ${count(plan.cancelled.length, "is", "are")} cancelled.</p>
      ${plan.clashes.length > 0 && html`<p>The colleague cannot take:</p><ul class="plainlist">${plan.clashes.map(({ appointment, conflict, alternatives }) => html`
        <li key=${appointment.id}><${Brief} of=${appointment} /><small>${conflict ? `has ${conflict.patient_name}` : "is away"}
          ${alternatives.length > 0 && ` · free: ${alternatives.slice(0, 3).map(({ start }) => `${shortDay(start)} ${hour(start)}`).join(", ")}`}</small></li>`)}</ul>`}</section>`}
    <p class="actions">${plan // by no Enter in a field: the one before may have been hit twice
      ? html`<${Send} key="do" of=${form} type="button" onClick=${({ target, detail }) => detail < 2 && form.submit({ target: target.form })}>Do so<//>`
      : html`<${Send} of=${form}>${repairs ? "Show what happens" : "Save the absence"}<//>`}</p></form><//>`;
}

function Absences({ user, may, loaded, onNew }) {
  const end = useSubmit(async (one) => { await call("DELETE", `/user/${user.id}/absences/${one.id}`); say("The absence is taken back."); await loaded.reload(); });
  const coming = loaded.data.filter((one) => one.ends_at.slice(0, 16) > now());
  return html`<section class="card"><h2>Absences</h2>
    ${coming.length ? html`<ul class="plainlist">${coming.map((one) => html`<li key=${one.id}>${time(one.starts_at)} – ${time(one.ends_at)} <small>${one.reason}</small>
      ${may && html` <button disabled=${end.busy} onClick=${() => end.submit(one)} aria-label=${`Take back the absence from ${time(one.starts_at)}`}>Take back</button>`}</li>`)}</ul>`
    : html`<p class="quiet">None to come.</p>`}
    <${Wrong} error=${end.error} />${may && html`<p class="actions"><button onClick=${onNew}>New absence…</button></p>`}</section>`;
}

export function StaffMember({ id }) {
  const [adding, setAdding] = useState(false);
  const loaded = useLoad(() => get(`/user/${id}`), [id]);
  const hours = useLoad(() => call("GET", `/user/${id}/hours`), [id]);
  const absences = useLoad(() => get(`/user/${id}/absences`), [id]);
  const user = loaded.data;
  const own = Number(id) === me().id;
  const may = is("admin", "receptionist") || own;
  return html`<${Loaded} of=${loaded}>${user && html`
    <div class="head"><div><h1>${name(user)}</h1><p class="quiet">${Word(word(user.role))} · ${user.email} <${Active} of=${user} /></p></div>
      <div class="tools"><a class="button" href=${`#/calendar?of=${id}`}>Calendar</a></div></div><div class="columns even">
      ${user.role !== "receptionist" && html`<div><${Loaded} of=${hours}>${hours.data && html`<${Hours} user=${user} may=${may} loaded=${hours} />`}<//></div>
        <div><${Loaded} of=${absences}>${absences.data && html`<${Absences} user=${user} may=${may} loaded=${absences} onNew=${() => setAdding(true)} />`}<//></div>`}
      ${(own || is("admin")) && html`<div><${Rights} user=${user} onDone=${loaded.reload} /></div>`}</div>
    ${adding && html`<${NewAbsence} user=${user} onClose=${() => setAdding(false)} onDone=${() => { setAdding(false); absences.reload(); }} />`}`}<//>`;
}

export function Account() { // one's own
  const logins = useLoad(() => get("/me/sessions"), []);
  const change = useSubmit(async ({ current_password, new_password }, form) => {
    await changePassword(current_password, new_password);
    form.reset();
    say("Your password is changed. Your other logins have ended.");
    await logins.reload();
  });
  const end = useSubmit(async (one) => {
    if (one === "all") return signOut(true);
    await call("DELETE", `/me/sessions/${one.id}`);
    return logins.reload();
  });
  const device = (text) => (/(Edg|OPR|Chrome|Firefox|Safari)[^/]*\/(\d+)/.exec(text)?.slice(1).join(" ") ?? text) + (/\((?:X11; )?([^;)]+)/.exec(text) ? ` on ${/\((?:X11; )?([^;)]+)/.exec(text)[1]}` : "");
  return html`<div class="head"><div><h1>${name(me())}</h1><p class="quiet">${Word(word(me().role))} · ${me().email}</p></div>
      <div class="tools"><a class="button" href=${`#/staff/${me().id}`}>My hours and account</a></div></div><div class="columns even">
      <section class="card"><h2>My logins</h2><${Loaded} of=${logins}><ul class="plainlist">${(logins.data ?? []).map((one) => html`<li key=${one.id}>
          <span>${device(one.device)} ${one.current && html`<span class="state completed">This one</span>`}<small>${one.address} · last used ${time(one.last_used_at)}</small></span>
          ${!one.current && html`<button disabled=${end.busy} onClick=${() => end.submit(one)} aria-label=${`End the login of ${device(one.device)}, ${time(one.last_used_at)}`}>End</button>`}</li>`)}</ul><//>
        <${Wrong} error=${end.error} /><p class="actions"><button onClick=${() => end.submit("all")}>Sign out everywhere</button></p></section>
      <form class="card" onSubmit=${change.submit}><h2>My password</h2>
        <${Field} label="Present password" name="current_password" type="password" autocomplete="current-password" required errors=${change.errors} />
        <${Field} label="New password" name="new_password" type="password" autocomplete="new-password" minlength="10" required errors=${change.errors} />
        <${Wrong} error=${change.error} /><p class="actions"><${Send} of=${change}>Change the password<//></p></form></div>`;
}
