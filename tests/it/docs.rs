//! The documentation: its code blocks run and answer as they say, its links lead somewhere, and its lists of settings,
//! metrics, functions and problem codes are complete.

mod blocks;
mod links;
mod lists;
mod pages;
mod recipes;
