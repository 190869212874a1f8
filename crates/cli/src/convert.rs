//! `neap convert`: a Hugging Face folder as a GGUF file.

use std::fs::{self, File};
use std::io::BufWriter;

use neap_kernels::format::WeightFormat;
use neap_model::convert;
use neap_model::source::ModelSource;

use crate::args::ConvertArgs;
use crate::bytes::show;
use crate::failure::Failure;
use crate::loading;

pub fn run(args: &ConvertArgs) -> Result<(), Failure> {
    let mut source = ModelSource::open(&args.folder)?;
    if let Some(format) = args.quantize {
        source.set_quantize(format);
    }
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!(
            "{} is there already: give another name, or --force",
            args.output.display()
        )));
    }
    // Written beside and renamed, so that a half-written file never has the name.
    let mut part = args.output.clone().into_os_string();
    part.push(".part");
    let file = File::create(&part)?;
    let bar = loading::progress_bar("converting");
    let written = convert::to_gguf(&source, BufWriter::new(file), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let finished = written.map_err(Failure::from).and_then(|out| {
        let file = out
            .into_inner()
            .map_err(|why| Failure::new(why.to_string()))?;
        file.sync_all()?;
        Ok(fs::rename(&part, &args.output)?)
    });
    if let Err(why) = finished {
        let _ = fs::remove_file(&part);
        return Err(why);
    }
    let bytes = fs::metadata(&args.output)?.len();
    eprintln!("neap: {}, {}", args.output.display(), show(bytes));
    Ok(())
}

/// The formats that matrices are quantized to.
pub fn parse_quantize(name: &str) -> Result<WeightFormat, String> {
    match name.to_ascii_lowercase().as_str() {
        "q4_0" => Ok(WeightFormat::Q4_0),
        "q8_0" => Ok(WeightFormat::Q8_0),
        _ => Err(format!("{name:?} is not one of q4_0, q8_0")),
    }
}
