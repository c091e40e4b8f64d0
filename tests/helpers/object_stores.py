"""Starts servers on loopback that speak the protocols of S3 and of Google Cloud Storage."""

import contextlib
import logging
import warnings

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server():
    """Serves `s3://signs` with moto; the environment leads s3fs there, in processes started meanwhile too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer
    import s3fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:{1}".format(*server.get_host_and_port()))
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem()
        fs.makedirs("signs", exist_ok=True)
        for path in fs.find("signs"):  # moto's buckets outlive its server
            fs.rm_file(path)
        yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@contextlib.contextmanager
def gs_server():
    """Serves `gs://signs` with gcp-storage-emulator, which ignores conditions of writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gcp_storage_emulator.server import create_server

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="signs")
        server.start()
        address = server._api._httpd.server_address
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{address[1]}")
        import gcsfs

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()
