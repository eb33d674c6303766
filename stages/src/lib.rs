//! Native stages of trestle: data, generation, style inversion, training, evaluation.

pub mod data;
pub mod dataset;
pub mod draw;
pub mod error;
pub mod evaluation;
pub mod features;
pub mod formats;
pub mod generation;
pub mod generator;
pub mod generator_pretrain;
pub mod hub_file;
pub mod metrics;
pub mod model;
pub mod model_import;
pub mod nn;
pub mod pickle;
pub mod prompting;
pub mod real_adaptation;
pub mod rng;
pub mod style_inversion;
pub mod synthetic_pretrain;
pub mod table;
pub mod train;

pub use error::{Error, Result};
use trestle_engine::stage::Registry;

/// Every native stage kind.
pub fn registry() -> Registry {
    Registry::default()
        .with::<dataset::Dataset>()
        .with::<evaluation::Evaluation>()
        .with::<features::FeaturesStage>()
        .with::<generation::Generation>()
        .with::<generator_pretrain::GeneratorPretrain>()
        .with::<hub_file::HubFile>()
        .with::<model_import::ModelImport>()
        .with::<prompting::Prompting>()
        .with::<real_adaptation::RealAdaptation>()
        .with::<style_inversion::StyleInversion>()
        .with::<synthetic_pretrain::SyntheticPretrain>()
        .with::<table::Table>()
}

/// The instruction set that the matrix kernels use on this machine: `avx512f`, `avx2`, `neon` or `portable`. Results are the
/// same bytes with any number of threads, but not across instruction sets, so the record of every run names it.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return "avx512f";
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "neon" } else { "portable" }
}
