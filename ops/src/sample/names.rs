//! Names and places that sample documents are made of.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const FIRST: &[&str] = &[
    "Asha", "Ravi", "Meera", "Suresh", "Lakshmi", "Karthik", "Divya", "Arun", "Priya", "Mohan",
    "Anitha", "Vijay", "Deepa", "Ganesh", "Kavya", "Harish", "Nandini", "Prakash", "Revathi",
    "Sanjay", "Uma", "Dinesh", "Bhavani", "Naveen", "Geetha", "Rajesh", "Malar", "Senthil",
    "Jyothi", "Imran",
];
const LAST: &[&str] = &[
    "Raman",
    "Iyer",
    "Nair",
    "Reddy",
    "Pillai",
    "Menon",
    "Gowda",
    "Shetty",
    "Naidu",
    "Krishnan",
    "Das",
    "Fernandes",
    "Khan",
    "Varma",
    "Subramanian",
    "Hegde",
    "Balan",
    "Joseph",
    "Rao",
    "Sundaram",
];
const CITIES: &[(&str, &str, &str)] = &[
    ("Chennai", "TN", "600"),
    ("Coimbatore", "TN", "641"),
    ("Madurai", "TN", "625"),
    ("Bengaluru", "KA", "560"),
    ("Mysuru", "KA", "570"),
    ("Kochi", "KL", "682"),
    ("Thrissur", "KL", "680"),
    ("Hyderabad", "TS", "500"),
    ("Vijayawada", "AP", "520"),
    ("Puducherry", "PY", "605"),
];
const STREETS: &[&str] = &[
    "Gandhi Road",
    "Temple Street",
    "Market Road",
    "Lake View",
    "Station Road",
    "1st Cross",
    "Mill Lane",
];

pub(super) fn person(rng: &mut StdRng) -> (&'static str, &'static str) {
    (pick(rng, FIRST), pick(rng, LAST))
}

/// City, state, postal code, street.
pub(super) fn place(rng: &mut StdRng) -> (&'static str, &'static str, String, String) {
    let (city, state, area) = *CITIES.choose(rng).expect("there are cities");
    let code = format!("{area}{:03}", rng.random_range(1..100));
    let street = format!("{} {}", rng.random_range(1..240), pick(rng, STREETS));
    (city, state, code, street)
}

pub(super) fn phone(rng: &mut StdRng) -> String {
    format!("+91 9{:04} {:05}", rng.random_range(0..10_000), rng.random_range(0..100_000))
}

pub(super) fn pick(rng: &mut StdRng, from: &[&'static str]) -> &'static str {
    from.choose(rng).expect("there is something to pick")
}
