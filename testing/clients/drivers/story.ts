// What every driver needs: the server's address, a new doctor, two images, and the checks of the answers.
import { readFileSync } from "node:fs";

export const address = process.env.ADDRESS!;
export const password = "three green herons";
export const doctor = {
  first_name: "Tomás",
  last_name: "Okafor",
  email: `doctor.${Date.now()}.${process.pid}@clinic.example`,
  password,
};
export const patient = { first_name: "Amina", last_name: "Wanjiru", phone_number: "+254 712 345 678" };
export const clock = "2031-02-03T10:00"; // as a form sends it: no seconds, no offset

export const images = process.env.IMAGES!.split(":").map(
  (path, number) => new File([readFileSync(path)], `${number}.png`, { type: "image/png" }),
);

export function sure<T>(value: T | undefined, what: string, error?: unknown): T {
  if (value === undefined) throw new Error(`${what}: ${JSON.stringify(error)}`);
  return value;
}

export function check(
  made: { mrn: string; status: string; date_of_birth: string | null },
  filed: { images: { image_url: string }[] },
  booked: { appointment_datetime: string; status: string },
  found: { id: number }[],
): void {
  const faults = [
    made.mrn && made.status === "admitted" && made.date_of_birth === null ? "" : "the patient",
    filed.images.length === 2 && URL.canParse(filed.images[0].image_url) ? "" : "the images",
    booked.appointment_datetime === `${clock}:00+03:00` && booked.status === "scheduled" ? "" : "the booking",
    found.length === 1 ? "" : "the search by two statuses",
  ].filter(Boolean);
  if (faults.length) throw new Error(`not as it should be: ${faults.join(", ")}`);
}
