//! The pages that explain echod and what it is built against. The tour is the front page of this crate.

#[doc = include_str!("traps.md")]
pub mod traps {}

#[doc = crate::links!()]
#[doc = include_str!("tutorial.md")]
pub mod tutorial {}

#[doc = crate::links!()]
#[doc = include_str!("tutorial.zh.md")]
pub mod tutorial_zh {}
