//! A digest of what is written.

use std::io::{self, Write};

use crate::digest::Digest;

/// Hashes what goes through to `W`.
#[derive(Debug)]
pub struct Hashing<W> {
    to: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Hashing<W> {
    /// Writes to `to`.
    pub fn new(to: W) -> Self {
        Self { to, hasher: blake3::Hasher::new() }
    }

    /// What was written to, and the digest of all bytes.
    pub fn end(self) -> (W, Digest) {
        (self.to, Digest::new(*self.hasher.finalize().as_bytes()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
