// hey-api: answers are checked by Zod. Their times have an offset, which Zod refuses unless it is told.
export default {
  input: "openapi.json",
  output: "generated",
  plugins: [
    "@hey-api/client-fetch",
    { name: "@hey-api/sdk", validator: { response: "zod" } },
    { name: "zod", dates: { offset: true } },
  ],
};
