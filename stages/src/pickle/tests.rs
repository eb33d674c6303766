#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
