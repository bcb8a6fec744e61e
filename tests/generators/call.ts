// Checks a generated TypeScript client: it has every operation, and can call a node.
//
//     call.js DESCRIPTION BASE_URL TOKEN
import { readFileSync } from 'node:fs';
import { createClient } from './generated/client/index.js';
import * as sdk from './generated/sdk.gen.js';

const [description, baseUrl, token] = process.argv.slice(2);

function check(holds: boolean, detail: unknown): asserts holds {
  if (!holds) throw new Error(JSON.stringify(detail));
}

const paths: Record<string, Record<string, { operationId: string }>> = JSON.parse(readFileSync(description, 'utf8')).paths;
const operations = Object.values(paths).flatMap((methods) => Object.values(methods).map((one) => one.operationId));
const called = (id: string) => id.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
const missing = operations.filter((id) => typeof (sdk as Record<string, unknown>)[called(id)] !== 'function');
check(new Set(operations).size === operations.length && missing.length === 0, missing);

const client = createClient({ baseUrl, auth: token });
const caller = { account: 'typescript' };
const body = { caller, resource: 'llama-3.3-70b', usage: { tokens: 1500 } };
const decided = await sdk.consume({ client, body });
check(decided.data?.verdict === 'allowed', decided.error);
const listed = await sdk.listRateLimits({ client, body: { caller, page_size: 100 } });
const model = listed.data?.resources.find((one) => one.resource === 'llama-3.3-70b');
check(model !== undefined && model.quotas.some((quota) => quota.used === 1500), listed.error ?? listed.data);
console.log(`typescript: ${operations.length} operations, and a call`);
