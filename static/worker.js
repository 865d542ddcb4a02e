// Loads an engine in a dedicated worker: worker.js?engine=cpu or ?engine=gpu. Beyond what the engine itself says
// ({ message, bytes? }) the page hears { loading: bytes } while the module arrives, and { failed: words }.
const failed = (error) => postMessage({ failed: String((error && error.message) || error) });
addEventListener("unhandledrejection", (event) => failed(event.reason));

const name = new URLSearchParams(location.search).get("engine") === "gpu" ? "engine-gpu" : "engine-cpu";
const at = (file) => new URL("../" + file, location.href).href;

async function load() {
  importScripts(at(name + ".js"));
  const response = await fetch(at(name + "_bg.wasm"));
  if (!response.ok) throw new Error(name + "_bg.wasm: the server says " + response.status);
  let loaded = 0;
  let told = 0;
  const counted = response.body.pipeThrough(new TransformStream({
    transform(chunk, controller) {
      loaded += chunk.byteLength;
      if (loaded - told > 131072) {
        told = loaded;
        postMessage({ loading: loaded });
      }
      controller.enqueue(chunk);
    },
  }));
  const module = new Response(counted, { headers: { "Content-Type": "application/wasm" } });
  await wasm_bindgen({ module_or_path: module });
}

load().catch(failed);
