"""Types of file systems on which no state is kept."""

#: Locks, atomic renames and hard links are not to be trusted here, and Docker cannot mount from some of them.
NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3",
    "smbfs", "virtiofs",
}  # fmt: skip

OVERLAY_FILE_SYSTEMS = {"overlay", "aufs", "fuse.fuse-overlayfs"}
