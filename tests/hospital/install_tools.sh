#!/bin/sh
# Install what the tests of the hospital wing compare with: an archive (Orthanc) and other people's DICOM programs.
# Only as root on Debian or a system made from it; elsewhere the tests that need them say that they were skipped.
need=''
command -v Orthanc >/dev/null || need="$need orthanc orthanc-dicomweb"
command -v dciodvfy >/dev/null || need="$need dicom3tools"
command -v dcm2niix >/dev/null || need="$need dcm2niix"
command -v ip >/dev/null || need="$need iproute2"
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed:$need. Tests that need them are skipped (apt install$need, as root)."
    exit 0
fi
echo "Installing$need for the tests of the hospital wing"
# The server must not start by itself: the tests start one of their own, on a network of its own
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
{ apt-get install -y -qq --no-install-recommends $need ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $need; }; } >/dev/null 2>&1 ||
    { echo "$need could not be installed; tests that need them are skipped"; exit 0; }
command -v systemctl >/dev/null && systemctl disable --now orthanc >/dev/null 2>&1
exit 0
