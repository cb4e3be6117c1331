// Signing in, signing up, a forgotten password. Also laid over a view whose login has ended, so that nothing typed is lost.
import { call, get, post, signIn } from "./api.js";
import { Choice, Field, Send, Wrong, html, useLoad, useState, useSubmit } from "./parts.js";

const ABOUT_SIGN_UP = {
  first_administrator: "There is no administrator yet. The first account is theirs.",
  open: "Anybody may sign up and is active at once.",
  approval: "An administrator has to approve a new account before it can be used.",
  closed: "An administrator makes the accounts here." };

const Password = (props) => html`<${Field} type="password" name="password" label="Password" required ...${props} />`;

function SignIn({ email = "", first }) {
  const form = useSubmit(({ email, password }) => signIn(email, password));
  return html`<form onSubmit=${form.submit}>
    <${Wrong} error=${form.error} />
    <${Field} label="Email" name="email" type="email" autocomplete="username" required defaultValue=${email} autofocus=${first} />
    <${Password} autocomplete="current-password" autofocus=${!first} /><${Send} of=${form}>Sign in<//></form>`;
}

export function NewAccount({ roles, onDone, submit = "Create account" }) {
  const form = useSubmit(async (fields) => onDone((await post("/signup", fields)).body, fields));
  return html`<form onSubmit=${form.submit}>
    ${Object.keys(form.errors).length === 0 && html`<${Wrong} error=${form.error} />`}<div class="row">
      <${Field} label="First name" name="first_name" autocomplete="given-name" maxlength="100" required errors=${form.errors} />
      <${Field} label="Last name" name="last_name" autocomplete="family-name" maxlength="100" required errors=${form.errors} /></div>
    <${Field} label="Email" name="email" type="email" autocomplete="username" required errors=${form.errors} />
    <${Password} autocomplete="new-password" minlength="10" hint="10 characters or more; three words are good." errors=${form.errors} />${roles.length > 1
      ? html`<${Choice} label="Role" name="role" options=${roles} errors=${form.errors} />`
      : html`<input type="hidden" name="role" value=${roles[0]} />`}
    <${Send} of=${form}>${submit}<//></form>`;
}

function Forgotten() {
  const [sent, setSent] = useState("");
  const form = useSubmit(async ({ email }) => setSent((await call("POST", "/password/forgot", { json: { email } })).body.msg));
  return html`<form onSubmit=${form.submit}>
    <p>We send a link by which you can set a new password.</p><${Wrong} error=${form.error} />
    <${Field} label="Email" name="email" type="email" autocomplete="username" required autofocus />
    ${sent ? html`<p class="good" role="status">${sent}</p>` : html`<${Send} of=${form}>Send the link<//>`}</form>`;
}

function NewPassword({ token, onDone }) {
  const form = useSubmit(async ({ password }) =>
    onDone((await call("POST", "/password/reset", { json: { token, password } })).body.msg));
  return html`<form onSubmit=${form.submit}>
    <${Wrong} error=${form.error} /><${Password} label="New password" autocomplete="new-password" minlength="10" autofocus />
    <${Send} of=${form}>Set the password<//></form>`;
}

const TITLES = { in: "Sign in", up: "Create an account", forgotten: "Forgotten password", reset: "Set a new password" };

export function SignInPage({ why, token, lastEmail }) {
  const about = useLoad(() => get("/"), []);
  const policy = about.data?.sign_up;
  const first = policy === "first_administrator";
  const [chosen, choose] = useState(token ? "reset" : "");
  const [news, setNews] = useState("");
  const step = chosen || (first ? "up" : "in");
  const made = async (user, { email, password }) => {
    if (user.is_active) return signIn(email, password);
    setNews(`Your account is made, ${user.first_name}. You can sign in once an administrator has approved it.`);
    choose("in");
  };
  const link = (to, text) => to !== step && html`<button class="link" onClick=${() => choose(to)}>${text}</button>`;
  return html`<main class="door"><div class="card">
    <p class="brand">Hosi</p><h1>${step === "up" && first ? "Welcome. Make the first administrator" : TITLES[step]}</h1>
    ${(news || why) && html`<p class=${news ? "good" : "note"} role="status">${news || why}</p>`}
    ${step === "up" && html`<p class="quiet">${ABOUT_SIGN_UP[policy]}</p>`}${step === "in" && html`<${SignIn} first=${!lastEmail} email=${lastEmail} />`}
    ${step === "up" && html`<${NewAccount} roles=${first ? ["admin"] : ["doctor", "receptionist"]} onDone=${made} />`}
    ${step === "forgotten" && html`<${Forgotten} />`}
    ${step === "reset" && html`<${NewPassword} token=${token} onDone=${(msg) => { setNews(msg); choose("in"); history.replaceState(null, "", "/"); }} />`}
    <p class="links">${link("in", "Sign in")} ${policy && policy !== "closed" && link("up", "Create an account")} ${link("forgotten", "Forgotten password?")}</p>
    <${Wrong} error=${about.error} /><details><summary>What else can one do here?</summary><ul>${policy && !first && html`<li>${ABOUT_SIGN_UP[policy]}</li>`}
        <li>No administrator on a server in production? The command <code>flask create-admin</code> makes the first one.</li>
        <li>For a try, <code>make seed</code> fills the server with a demonstration clinic and prints its logins.</li>
        <li>Programs use the <a href="/docs">interface of the server</a>.</li></ul></details></div></main>`;
}
