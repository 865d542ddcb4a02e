//! The engine with WebGPU, as a binary for a dedicated worker.

fn main() {
    #[cfg(target_arch = "wasm32")]
    baton_worker::start();
}
