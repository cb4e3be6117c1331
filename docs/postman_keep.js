// Keeps the tokens of a login or a refresh. Forgets what the server no longer takes, so that it is made again.
const env = pm.environment;
const json = (pm.response.headers.get("Content-Type") || "").startsWith("application/json");
const { access_token, refresh_token, expires_in, user } = json ? pm.response.json() : {};
for (const who of ["", "doctor_"]) {
  if (access_token && user.email === env.get(who + "email")) {
    env.set(who + "access_token", access_token);
    env.set(who + "refresh_token", refresh_token);
    env.set(who + "expires_at", Date.now() + expires_in * 1000);
  }
  if (pm.response.code === 401) env.unset(who + "expires_at");
}
if (pm.response.code === 404) {
  for (const name of ["patient_id", "user_id", "appointment_id", "report_id", "doctor_appointment_id", "doctor_report_id"]) {
    env.unset(name);
  }
}
