//! Who calls, and may they: every request is checked, /healthz too.
//!
//! - [`identity`] – who a client certificate names.
//! - [`attributes`] – what a request is, in the authoriser's words.
//! - [`review`] – TokenReview and SubjectAccessReview, asked of the API server and remembered a while.

pub mod attributes;
pub mod identity;
pub mod review;

pub use identity::Identity;
pub use review::{Denial, Reviewer};
