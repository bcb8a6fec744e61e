// What the generator for TypeScript is asked for; the paths are those of tests/generated-clients.
export default {
  input: process.env.TOLLGATE_TEST_DESCRIPTION,
  output: { path: process.env.TOLLGATE_TEST_CLIENT, module: { extension: '.js' } },
  plugins: ['@hey-api/typescript', '@hey-api/sdk', '@hey-api/client-fetch'],
};
