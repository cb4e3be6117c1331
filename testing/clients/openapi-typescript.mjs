// openapi-typescript makes a string of `format: binary`. Its documentation names this way to get a File.
import { readFile, writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const file = ts.factory.createTypeReferenceNode("File");
const document = JSON.parse(await readFile("openapi.json", "utf-8"));
const tree = await openapiTS(document, {
  transform: (schema) => (schema.format === "binary" ? file : undefined),
});
await writeFile("generated/schema.ts", astToString(tree));
