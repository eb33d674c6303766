//! The stage `hub-file`: a file of a repository of Hugging Face.
//!
//! What it gives depends on its parameters alone: the revision is the hash of a commit, or the digest of the file is given; a branch such
//! as `main` without a digest is refused, since it gives other bytes tomorrow. Endpoint, token, folder of the cache and being offline are
//! no parameters: they change how the bytes are got, not which. The program sets them from the variables that Hugging Face's own tools know.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trestle_engine::stage::{Context, Format, InPort, OutPort, ParamError, Stage, StageError};

use crate::error::{Error, Result};

/// How files are got; the same for the whole process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Folder of the hub's cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`).
    pub cache: PathBuf,
    /// Address; without, <https://huggingface.co> (`HF_ENDPOINT`).
    pub endpoint: Option<String>,
    /// Secret of the user (`HF_TOKEN`).
    pub token: Option<String>,
    /// Only what is in the cache (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

fn settings() -> &'static RwLock<Option<Settings>> {
    static SETTINGS: OnceLock<RwLock<Option<Settings>>> = OnceLock::new();
    SETTINGS.get_or_init(RwLock::default)
}

/// Says how files are got; without, the stage refuses to run.
pub fn configure(new: Settings) {
    *settings().write().unwrap_or_else(PoisonError::into_inner) = Some(new);
}

/// A file of a repository.
pub struct HubFile;

/// What the repository holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    /// A model.
    #[default]
    Model,
    /// A data set.
    Dataset,
}

/// Parameters of `hub-file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// `owner/name`.
    pub repo: String,
    /// Whether it is a model's or a data set's repository.
    pub holds: Holds,
    /// Hash of the commit, 40 digits; with `sha256` a branch or tag too.
    pub revision: String,
    /// Path in the repository, such as `model.safetensors`.
    pub file: String,
    /// Digest that the file must have, 64 digits.
    pub sha256: Option<String>,
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A path that stays in its folder.
fn is_plain(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    !path.contains('\\') && path.split('/').all(plain)
}

impl Params {
    fn repo(&self) -> Repo {
        let kind = if self.holds == Holds::Model { RepoType::Model } else { RepoType::Dataset };
        Repo::with_revision(self.repo.clone(), kind, self.revision.clone())
    }

    /// The file, in the cache.
    fn find(&self, settings: &Settings) -> Result<PathBuf> {
        let cache = Cache::new(settings.cache.clone());
        // Python's client keeps no reference for a commit: the folder of its files has the commit's name.
        let commit = settings.cache.join(self.repo().folder_name()).join("snapshots").join(&self.revision).join(&self.file);
        if is_hex(&self.revision, 40) && commit.is_file() {
            return Ok(commit);
        }
        if settings.offline {
            let cached = cache.repo(self.repo()).get(&self.file);
            return cached.ok_or_else(|| {
                let place = settings.cache.display();
                Error::argument(format!(
                    "`{}` of {} at {} is not in {place}, and HF_HUB_OFFLINE is set",
                    self.file, self.repo, self.revision
                ))
            });
        }
        let fetched = || -> std::result::Result<PathBuf, ApiError> {
            let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false).with_retries(3).with_token(settings.token.clone());
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
            }
            // `download` and not `get`: what a branch was when it was last looked at is not what it is.
            builder.build()?.repo(self.repo()).download(&self.file)
        };
        let wrong = |e: String| Error::argument(format!("`{}` of {} at {}: {e}", self.file, self.repo, self.revision));
        let found = fetched().map_err(|e| wrong(e.to_string()))?;
        if is_hex(&self.revision, 40) && !commit.is_file() {
            return Err(wrong("the hub gave a file of another commit".into()));
        }
        Ok(found)
    }
}

/// Copies a file; gives its digest.
fn copy(from: &Path, to: &Path) -> Result<String> {
    let mut input = File::open(from).map_err(Error::io(from))?;
    let mut output = File::create(to).map_err(Error::io(to))?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = input.read(&mut buffer).map_err(Error::io(from))?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        output.write_all(&buffer[..count]).map_err(Error::io(to))?;
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The digest that the hub's cache has in the name of a large file.
fn named_digest(path: &Path) -> Option<String> {
    let name = fs::canonicalize(path).ok()?.file_name()?.to_str()?.to_owned();
    Some(name).filter(|name| is_hex(name, 64))
}

impl Stage for HubFile {
    const KIND: &'static str = "hub-file";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "A file of a repository of Hugging Face, at a commit";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        Vec::new()
    }

    fn outputs() -> Vec<OutPort> {
        vec![OutPort { name: "file", format: Format::ANY, path: "file", doc: "The file" }]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut out = Vec::new();
        let mut want = |ok: bool, path: &str, message: &str| {
            if !ok {
                out.push(ParamError::new(path, message));
            }
        };
        want(is_plain(&params.repo) && params.repo.split('/').count() <= 2, "repo", "a repository is `owner/name`");
        want(is_plain(&params.file), "file", "a path in the repository, such as `model.safetensors`");
        let digest = params.sha256.as_deref();
        want(digest.is_none_or(|digest| is_hex(digest, 64)), "sha256", "a digest has 64 small hexadecimal digits");
        let pinned = is_hex(&params.revision, 40) || (digest.is_some() && is_plain(&params.revision));
        want(pinned, "revision", "it must be the hash of a commit (40 digits), or `sha256` given: a branch gives other bytes tomorrow");
        out
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> std::result::Result<(), StageError> {
        let settings = settings().read().unwrap_or_else(PoisonError::into_inner).clone();
        let settings = settings.ok_or_else(|| StageError::new("nobody said where the cache of the hub is"))?;
        let found = params.find(&settings)?;
        let digest = copy(&found, cx.output("file")?)?;
        let wanted = params.sha256.clone().or_else(|| named_digest(&found));
        match wanted.filter(|wanted| *wanted != digest) {
            None => Ok(()),
            Some(wanted) => {
                let message = format!("{}: its sha256 is {digest}, not {wanted}", found.display());
                Err(StageError::new(message).help("delete it there to fetch it again, or correct `sha256`"))
            }
        }
    }
}
