// The clinic's wall clock, whatever the browser's zone: the first 16 characters of a time are what the clinic's clocks show.
let zone = "UTC", skew = 0; // milliseconds by which this computer's clock is behind the server's

export function setClock(about) { zone = about.timezone; skew = Date.parse(about.now) - Date.now(); }
export const now = () => // "2030-03-04T09:12" at the clinic
  new Date(Date.now() + skew).toLocaleString("sv-SE", { timeZone: zone }).slice(0, 16).replace(" ", "T");
export const today = () => now().slice(0, 10);
export const dayOf = (time) => time.slice(0, 10);
export const hour = (time) => time.slice(11, 16);

const at = (wall) => new Date(`${wall.length === 10 ? `${wall}T00:00` : wall.slice(0, 16)}Z`); // as if the clinic were in UTC
export const plus = (wall, minutes) => new Date(at(wall).getTime() + minutes * 60e3).toISOString().slice(0, 16);
export const plusDays = (day, days) => plus(day, days * 1440).slice(0, 10);
export const minutesOf = (wall) => Number(wall.slice(11, 13)) * 60 + Number(wall.slice(14, 16));
export const minutesBetween = (from, to) => (at(to) - at(from)) / 60e3;
export const clock = (minutes) => [minutes / 60 | 0, minutes % 60].map((part) => String(part).padStart(2, "0")).join(":");
export const ends = ({ appointment_datetime: begins, duration_minutes }) => plus(begins, duration_minutes);
export const WEEK = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
export const weekday = (day) => (at(day).getUTCDay() + 6) % 7; // Monday is 0
export const monday = (day) => plusDays(day, -weekday(day));
const shown = (wall, options) => at(wall).toLocaleDateString("en-GB", { timeZone: "UTC", ...options });
export const niceDay = (day) => shown(day, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
export const shortDay = (day) => shown(day, { weekday: "short", day: "numeric", month: "short" });
export const date = (day) => (day ? shown(day, { day: "numeric", month: "short", year: "numeric" }) : "–");
export const time = (wall) => (wall ? `${date(wall)}, ${hour(wall)}` : "–");
export function age(born) {
  const years = Number(today().slice(0, 4)) - Number(born.slice(0, 4)) - (today().slice(5) < born.slice(5) ? 1 : 0);
  if (years > 1) return `${years} years`;
  const months = Math.floor(minutesBetween(born, today()) / 1440 / 30.44);
  return months > 1 ? `${months} months` : `${Math.floor(minutesBetween(born, today()) / 1440)} days`;
}
