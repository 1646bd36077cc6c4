// Use the client that @hey-api/openapi-ts generates, against the service whose URL is the argument.

import assert from 'node:assert/strict';

import { client } from './client/client.gen.js';
import { createBook, getBook, listBooks, login, register, searchBooks } from './client/index.js';

const [, , baseUrl, password] = process.argv;
assert(baseUrl && password);
client.setConfig({ baseUrl });
const email = 'anna@example.org';

const registered = await register({ body: { username: 'anna', email, password } });
assert.equal(registered.data?.tier, 'free');
const tokens = await login({ body: { email, password } });
assert(tokens.data);
client.setConfig({ baseUrl, auth: tokens.data.token });

const draft = { title: 'Octavo', author: 'Anna Aldus', genre: 'Science', price: 9.95 } as const;
const headers = { 'Idempotency-Key': 'first' };
const created = await createBook({ body: draft, headers });
const repeated = await createBook({ body: draft, headers });
assert(created.data);
assert.deepEqual(repeated.data, created.data);
assert.equal(repeated.response?.headers.get('Idempotency-Replayed'), 'true');
assert.deepEqual([created.data.price, created.data.user_id], [9.95, registered.data?.id]);

for (const number of [1, 2, 3]) {
    await createBook({ body: { title: `Quarto ${number}`, author: 'Bertha' } });
}
const page = await listBooks({ query: { per_page: 3 } });
assert(page.data && 'links' in page.data);
assert.equal(page.data.total, 4);
assert.deepEqual(page.data.items.map((book) => book.title), ['Quarto 3', 'Quarto 2', 'Quarto 1']);

const titles: string[] = [];
let cursor: string | undefined;
do {
    const part = await listBooks({ query: { limit: 3, cursor } });
    assert(part.data && 'has_more' in part.data);
    titles.push(...part.data.items.map((book) => String(book.title)));
    cursor = part.data.has_more ? String(part.data.next_cursor) : undefined;
} while (cursor !== undefined);
assert.deepEqual(titles, ['Octavo', 'Quarto 1', 'Quarto 2', 'Quarto 3']);

const results = await searchBooks({ query: { q: 'octavo ald' } });
assert.deepEqual(results.data?.results.map((book) => book.title), ['Octavo']);

const invalid = await createBook({ body: { title: '', author: 'Anna', price: -1 } });
assert.deepEqual(Object.keys(invalid.error?.messages ?? {}), ['title', 'price']);
const missing = await getBook({ path: { book_id: 7_000_000 } });
assert.equal(missing.error?.message, 'Book with id 7000000 not found');
assert.equal(missing.response?.status, 404);
console.log('ok');
