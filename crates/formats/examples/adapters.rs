//! Writes the golden adapters of every family again, merged, and as GGUF, for `scripts/check_adapters.py` to look at.
//!
//!     cargo run --release -p baton-formats --example adapters -- FOLDER

use std::error::Error;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use baton_formats::gguf_adapter::to_gguf;
use baton_formats::merge::{merge, merged_config};
use baton_formats::peft::{CONFIG_FILE, WEIGHTS_FILE, fitted};
use baton_formats::{Adapter, DirFiles, ModelConfig, read_all};
use futures::executor::block_on;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("give the folder to write to")?);
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families");
    for family in folders(&families)? {
        for adapter in folders(&family)? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let to = out.join(name(&family));
            block_on(write(&DirFiles::new(&family), &DirFiles::new(&adapter), &to, &name(&adapter)))?;
        }
    }
    Ok(())
}

async fn write(base: &DirFiles, theirs: &DirFiles, out: &Path, name: &str) -> Result<(), Box<dyn Error>> {
    let json = read_all(base, "config.json", 1 << 20).await?;
    let model = fitted(theirs, ModelConfig::parse(&json)?).await?;
    let adapter = Adapter::read(theirs, &model).await?;
    let again = out.join(name);
    fs::create_dir_all(&again)?;
    let (config, weights) = adapter.to_files(&model)?;
    fs::write(again.join(CONFIG_FILE), config)?;
    fs::write(again.join(WEIGHTS_FILE), weights)?;

    let merged = out.join(format!("{name}-merged"));
    fs::create_dir_all(&merged)?;
    fs::write(merged.join("config.json"), merged_config(&json, &model, &adapter, None)?)?;
    let sink = BufWriter::new(File::create(merged.join("model.safetensors"))?);
    merge(base, &model, &adapter, None, sink, &mut |_| ()).await?;
    if !model.is_encoder() {
        fs::write(out.join(format!("{name}.gguf")), to_gguf(&adapter, &model)?)?;
    }
    Ok(())
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}
