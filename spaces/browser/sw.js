// Keeps every file of the page when it is first fetched, so that it works offline; assemble.py changes VERSION with the files.

const VERSION = "stylegan-inversion development";
const ISOLATED = { // the runtime may use several threads only in a page that is isolated from others
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};

self.oninstall = () => self.skipWaiting();
self.onactivate = event => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("stylegan-inversion") && name !== VERSION) await caches.delete(name);
  await self.clients.claim();
})());
self.onfetch = event => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(self.registration.scope)) event.respondWith(answer(url.replace(/[?#].*/, "")));
};

async function answer(url) {
  const cache = await caches.open(VERSION), kept = await cache.match(url);
  if (kept) return kept;
  const fetched = await fetch(url, { cache: "no-cache" }), headers = new Headers(fetched.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  const response = new Response(fetched.body, { status: fetched.status, statusText: fetched.statusText, headers });
  if (fetched.ok) await cache.put(url, response.clone());
  return response;
}
