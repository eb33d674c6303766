//! Content-addressed cache of trestle.
