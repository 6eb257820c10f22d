//! Documents as JSON and as canonical Extended JSON, straight from raw BSON.
