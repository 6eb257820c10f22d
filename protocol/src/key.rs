//! `mongoId`: one text for each `_id` that MongoDB takes for one.
