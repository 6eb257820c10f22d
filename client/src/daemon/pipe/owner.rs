//! Who may open our pipes: our user, and nobody else (but those who may do anything on the machine).

use std::ffi::c_void;
use std::io;
use std::path::Path;
use std::ptr;

use tokio::net::windows::named_pipe::{NamedPipeServer, ServerOptions};
use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, LocalFree};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

/// Room for a `TOKEN_USER` and its SID, which has at most 68 bytes, in words of eight bytes.
const TOKEN_USER_WORDS: usize = 16;

/// Rights to a pipe, as text that the system reads, zero at the end.
#[derive(Debug)]
pub(super) struct Rights(Vec<u16>);

impl Rights {
    /// The user of this process may do everything; nothing is inherited, and nobody else is named.
    ///
    /// # Errors
    /// The system does not tell who we are.
    pub(super) fn ours() -> io::Result<Self> {
        Ok(Self(format!("D:P(A;;GA;;;{})\0", user()?).encode_utf16().collect()))
    }

    /// A pipe with these rights.
    ///
    /// # Errors
    /// As [`ServerOptions::create`].
    pub(super) fn create(
        &self,
        options: &ServerOptions,
        name: &Path,
    ) -> io::Result<NamedPipeServer> {
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a zero; the result is freed below; its size is not asked for.
        #[expect(unsafe_code, reason = "the system's call")]
        succeeded(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                self.0.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        })?;
        let mut attributes = SECURITY_ATTRIBUTES {
            nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).expect("a few bytes"),
            lpSecurityDescriptor: descriptor,
            bInheritHandle: 0,
        };
        let attributes = (&raw mut attributes).cast::<c_void>();
        // SAFETY: they are what the call wants, and outlive it; nobody has the descriptor after it.
        #[expect(unsafe_code, reason = "tokio takes rights as the system does")]
        unsafe {
            let pipe = options.create_with_security_attributes_raw(name, attributes);
            LocalFree(descriptor);
            pipe
        }
    }
}

/// The SID of this process's user, as text.
fn user() -> io::Result<String> {
    let mut token: HANDLE = ptr::null_mut();
    // SAFETY: the process's own handle needs no closing; the token's is closed below.
    #[expect(unsafe_code, reason = "the system's call")]
    succeeded(unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) })?;
    let mut room = [0_u64; TOKEN_USER_WORDS];
    let mut length = 0;
    let bytes = u32::try_from(size_of_val(&room)).expect("a few bytes");
    // SAFETY: the room is as large as is said and aligned for what is put there.
    #[expect(unsafe_code, reason = "the system's calls")]
    let told = unsafe {
        let told =
            GetTokenInformation(token, TokenUser, room.as_mut_ptr().cast(), bytes, &raw mut length);
        let told = succeeded(told);
        CloseHandle(token);
        told
    };
    told?;
    let mut text = ptr::null_mut();
    // SAFETY: the call above has put a TOKEN_USER there, whose SID is in the room behind it. The text ends
    // with a zero and is ours to free.
    #[expect(unsafe_code, reason = "the system's calls")]
    unsafe {
        let user = &*room.as_ptr().cast::<TOKEN_USER>();
        succeeded(ConvertSidToStringSidW(user.User.Sid, &raw mut text))?;
        let length = (0..).take_while(|&at| *text.add(at) != 0).count();
        let sid = String::from_utf16_lossy(std::slice::from_raw_parts(text, length));
        LocalFree(text.cast());
        Ok(sid)
    }
}

fn succeeded(done: i32) -> io::Result<()> {
    if done == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
