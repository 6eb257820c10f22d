//! One document of each kind.

use bson::oid::ObjectId;
use bson::{DateTime, Decimal128, Document, doc};
use rand::RngExt;
use rand::rngs::StdRng;

use super::names;

pub(super) const DAY_MS: i64 = 86_400_000;

/// An ObjectId of that moment.
pub(super) fn id(rng: &mut StdRng, at: DateTime) -> ObjectId {
    let seconds = u32::try_from(at.timestamp_millis() / 1_000).unwrap_or(0);
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    bytes[4..].copy_from_slice(&rng.random::<u64>().to_be_bytes());
    ObjectId::from_bytes(bytes)
}

/// Money, from hundredths.
pub(super) fn money(paise: i64) -> Decimal128 {
    let text = format!("{}.{:02}", paise / 100, paise % 100);
    text.parse().expect("a decimal")
}

pub(super) fn days_after(at: DateTime, days: i64) -> DateTime {
    DateTime::from_millis(at.timestamp_millis() + days * DAY_MS)
}

pub(super) fn user(rng: &mut StdRng, at: DateTime, role: &str) -> Document {
    let (first, last) = names::person(rng);
    let (city, state, code, street) = names::place(rng);
    let number = rng.random_range(100..10_000);
    doc! {
        "_id": id(rng, at),
        "name": format!("{first} {last}"),
        "email": format!("{}.{}{number}@example.in", first.to_lowercase(), last.to_lowercase()),
        "phone": names::phone(rng),
        "role": role,
        "address": { "street": street, "city": city, "state": state, "postalCode": code },
        "kyc": { "verified": rng.random_bool(0.9), "document": "aadhaar", "checkedAt": at },
        "tags": if rng.random_bool(0.2) { vec!["gold"] } else { vec![] },
        "createdAt": at,
        "updatedAt": at,
    }
}

/// `months` members pay one instalment a month each; one of them takes the pot.
pub(super) fn plan(rng: &mut StdRng, at: DateTime, number: usize) -> Document {
    let months = [20, 25, 40, 50][rng.random_range(0..4)];
    let instalment = [100_000, 200_000, 250_000, 500_000, 1_000_000][rng.random_range(0..5)];
    doc! {
        "_id": id(rng, at),
        "code": format!("CF-{:03}", number + 1),
        "name": format!("Chit {} × {months} months", instalment / 100),
        "chitValue": money(instalment * i64::from(months)),
        "monthlyInstalment": money(instalment),
        "months": months,
        "commissionPercent": 5.0,
        "auctionDay": rng.random_range(1..28),
        "isActive": true,
        "startsAt": at,
        "createdAt": at,
    }
}

pub(super) fn enrollment(
    rng: &mut StdRng,
    user: &Document,
    plan: &Document,
    ticket: i32,
) -> Document {
    let at = *plan.get_datetime("startsAt").expect("a plan has a start");
    let joined = days_after(at, rng.random_range(0..10));
    doc! {
        "_id": id(rng, joined),
        "userId": user.get_object_id("_id").expect("a user has an id"),
        "planId": plan.get_object_id("_id").expect("a plan has an id"),
        "ticket": ticket,
        "status": "active",
        "instalmentsPaid": 0,
        "prize": null,
        "nominee": { "name": names::person(rng).0, "relation": names::pick(rng, &["spouse", "child", "parent"]) },
        "joinedAt": joined,
        "updatedAt": joined,
    }
}

pub(super) fn invoice(
    rng: &mut StdRng,
    number: u64,
    user: &Document,
    enrollment: &Document,
    instalment_paise: i64,
    at: DateTime,
) -> Document {
    let fee = if rng.random_bool(0.15) { rng.random_range(5..50) * 1_000 } else { 0 };
    let mut items = vec![doc! {
        "description": "Monthly instalment", "quantity": 1,
        "unitPrice": money(instalment_paise), "amount": money(instalment_paise),
    }];
    if fee > 0 {
        items.push(doc! {
            "description": "Late fee", "quantity": 1, "unitPrice": money(fee), "amount": money(fee),
        });
    }
    doc! {
        "_id": id(rng, at),
        "number": format!("INV-{number:06}"),
        "userId": user.get_object_id("_id").expect("a user has an id"),
        "enrollmentId": enrollment.get_object_id("_id").expect("an enrollment has an id"),
        "customer": user.get_str("name").expect("a user has a name"),
        "amount": money(instalment_paise + fee),
        "currency": "INR",
        "status": "pending",
        "items": items,
        "issuedAt": at,
        "dueAt": days_after(at, 15),
        "paidAt": null,
        "reminders": 0,
        "internalNotes": "created by the monthly run",
        "updatedAt": at,
    }
}

pub(super) fn payment(rng: &mut StdRng, invoice: &Document, at: DateTime) -> Document {
    let method = names::pick(rng, &["upi", "upi", "cash", "neft", "cheque"]);
    doc! {
        "_id": id(rng, at),
        "invoiceId": invoice.get_object_id("_id").expect("an invoice has an id"),
        "userId": invoice.get_object_id("userId").expect("an invoice has a user"),
        "amount": *invoice.get_decimal128("amount").expect("an invoice has an amount"),
        "method": method,
        "reference": format!("{}{:010}", method.to_uppercase(), rng.random_range(0..9_999_999_999_u64)),
        "receivedBy": names::person(rng).0,
        "paidAt": at,
    }
}
