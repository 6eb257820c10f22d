//! The promises, each tested against real parts. One binary; files are named for the promise.

mod capture;
mod client_bank;
mod client_follows;
mod client_mangled;
mod client_network;
mod client_servers;
mod client_users;
mod encodings;
mod failover;
mod harness;
mod keys_and_payloads;
mod patch_oracle;
mod quarantine;
mod replay;
mod serve_digest;
mod serve_live;
mod serve_live_access;
mod serve_live_crowd;
mod serve_openapi;
mod serve_program;
mod serve_pull;
mod serve_refusals;
mod serve_sockets;
mod served;
mod stack;
mod up;
