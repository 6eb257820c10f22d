//! A whole office, made from a seed: the same seed and scale give the same documents.

use bson::{DateTime, Document};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::documents::{self, DAY_MS, days_after};

/// The collections, in the order in which they refer to each other.
pub const COLLECTIONS: [&str; 5] = ["users", "plans", "enrollments", "invoices", "payments"];

/// 1 January 2026, 00:00 UTC.
const TODAY_MS: i64 = 1_767_225_600_000;
const USERS: usize = 250;
const PLANS: usize = 12;
const ENROLLMENTS: usize = 400;
/// Months for which each enrollment is invoiced.
const MONTHS: i64 = 5;
const STAFF_EVERY: usize = 40;

/// The documents of an office, by collection.
#[derive(Debug, Default)]
pub struct Office {
    /// Members, agents and administrators.
    pub users: Vec<Document>,
    /// Savings plans.
    pub plans: Vec<Document>,
    /// Who is in which plan.
    pub enrollments: Vec<Document>,
    /// What each owes.
    pub invoices: Vec<Document>,
    /// What each paid.
    pub payments: Vec<Document>,
}

impl Office {
    /// An office of `scale` times 250 members and about 4,500 documents; `scale` is above 0.
    #[must_use]
    pub fn generate(seed: u64, scale: f64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let today = DateTime::from_millis(TODAY_MS);
        let count = |base: usize| scaled(base, scale);
        let mut office = Self::default();
        for number in 0..count(USERS) {
            let joined = days_after(today, -rng.random_range(200..1_200));
            let role = match number {
                0 => "admin",
                n if n % STAFF_EVERY == 0 => "agent",
                _ => "subscriber",
            };
            office.users.push(documents::user(&mut rng, joined, role));
        }
        for number in 0..count(PLANS) {
            let starts = days_after(today, -rng.random_range(150..400));
            office.plans.push(documents::plan(&mut rng, starts, number));
        }
        for ticket in 0..count(ENROLLMENTS) {
            office.enroll(&mut rng, i32::try_from(ticket % 50).unwrap_or(0) + 1, today);
        }
        office
    }

    fn enroll(&mut self, rng: &mut StdRng, ticket: i32, today: DateTime) {
        let user = self.users.choose(rng).expect("there are users");
        let plan = self.plans.choose(rng).expect("there are plans");
        let mut enrollment = documents::enrollment(rng, user, plan, ticket);
        let instalment = plan.get_decimal128("monthlyInstalment").expect("a plan has it");
        let instalment_paise = paise(&instalment.to_string());
        let mut paid = 0;
        for month in 0..MONTHS {
            let at = DateTime::from_millis(
                days_after(today, (month - MONTHS) * 30).timestamp_millis()
                    + rng.random_range(0..DAY_MS),
            );
            let number = self.invoices.len() as u64 + 1;
            let mut invoice =
                documents::invoice(rng, number, user, &enrollment, instalment_paise, at);
            let is_last = month == MONTHS - 1;
            if rng.random_bool(if is_last { 0.35 } else { 0.93 }) {
                let paid_at = days_after(at, rng.random_range(0..20));
                invoice.insert("status", "paid");
                invoice.insert("paidAt", paid_at);
                self.payments.push(documents::payment(rng, &invoice, paid_at));
                paid += 1;
            } else if !is_last {
                invoice.insert("status", "overdue");
                invoice.insert("reminders", rng.random_range(1..4));
            }
            self.invoices.push(invoice);
        }
        enrollment.insert("instalmentsPaid", paid);
        self.enrollments.push(enrollment);
    }

    /// The documents by collection, as [`COLLECTIONS`] orders them.
    #[must_use]
    pub fn into_collections(self) -> [(&'static str, Vec<Document>); 5] {
        let [users, plans, enrollments, invoices, payments] = COLLECTIONS;
        [
            (users, self.users),
            (plans, self.plans),
            (enrollments, self.enrollments),
            (invoices, self.invoices),
            (payments, self.payments),
        ]
    }
}

/// Hundredths of an amount with two places.
fn paise(amount: &str) -> i64 {
    amount.replace('.', "").parse().unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "small positive numbers"
)]
fn scaled(base: usize, scale: f64) -> usize {
    ((base as f64 * scale).round() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_office_again() {
        let [one, two] = [Office::generate(7, 0.1), Office::generate(7, 0.1)];
        assert_eq!(one.invoices, two.invoices);
        assert_ne!(one.invoices, Office::generate(8, 0.1).invoices);
    }

    #[test]
    fn an_office_has_a_few_thousand_documents() {
        let office = Office::generate(1, 1.0);
        let counts = office.into_collections().map(|(_, documents)| documents.len());
        let total: usize = counts.iter().sum();
        assert!((3_000..6_000).contains(&total), "{counts:?}");
    }
}
