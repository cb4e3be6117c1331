import createClient from "openapi-fetch";
import type { paths } from "./generated/schema";
import { address, check, clock, doctor, images, password, patient, sure } from "./story";

function form(body: object): FormData {
  const data = new FormData();
  for (const [name, value] of Object.entries(body))
    for (const one of [value].flat()) data.append(name, one instanceof File ? one : String(one));
  return data;
}

async function main() {
  const client = createClient<paths>({ baseUrl: address });
  const user = await client.POST("/signup", { body: doctor });
  sure(user.data, "sign-up", user.error);
  const login = await client.POST("/login", { body: { email: doctor.email, password } });
  const token = sure(login.data, "sign-in", login.error).access_token;
  client.use({ onRequest: ({ request }) => request.headers.set("Authorization", `Bearer ${token}`) });
  const made = await client.POST("/patients", { body: patient });
  const patient_id = sure(made.data, "patient", made.error).id;
  const filed = await client.POST("/reports", { body: { patient_id, images }, bodySerializer: form });
  const booked = await client.POST("/appointment", { body: { patient_id, appointment_datetime: clock } });
  const sent = await client.PATCH("/patient/{patient_id}", { params: { path: { patient_id } }, body: made.data! });
  sure(sent.data, "the whole record, sent back", sent.error);
  const found = await client.GET("/appointment", {
    params: { query: { patient_id: [patient_id], status: ["scheduled", "no_show"] } },
  });
  check(
    made.data!,
    sure(filed.data, "images", filed.error),
    sure(booked.data, "booking", booked.error),
    sure(found.data, "search", found.error),
  );
}

main();
