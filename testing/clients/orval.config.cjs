// orval: three outputs of one document. Zod refuses the offset of our answers' times unless it is told.
const input = "openapi.json";
const baseUrl = { getBaseUrlFromSpecification: true };
module.exports = {
  fetch: { input, output: { target: "generated/fetch.ts", client: "fetch", baseUrl } },
  axios: { input, output: { target: "generated/axios.ts", client: "axios", baseUrl } },
  zod: {
    input,
    output: { target: "generated/zod.ts", client: "zod", override: { zod: { dateTimeOptions: { offset: true } } } },
  },
};
