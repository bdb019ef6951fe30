"""An S3 server for tests: s3.py PORT BUCKET

Checks signatures: what is not signed with the key that it prints is refused. Ends with its input.
"""

import json
import sys

import boto3
import moto.settings
from moto.server import ThreadedMotoServer

port, bucket = int(sys.argv[1]), sys.argv[2]
server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
server.start()
anybody = {
    "region_name": "us-east-1",
    "endpoint_url": f"http://127.0.0.1:{port}",
    "aws_access_key_id": "anybody",
    "aws_secret_access_key": "anything",
}
iam = boto3.client("iam", **anybody)
iam.create_user(UserName="tests")
statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
iam.put_user_policy(UserName="tests", PolicyName="all", PolicyDocument=policy)
key = iam.create_access_key(UserName="tests")["AccessKey"]
boto3.client("s3", **anybody).create_bucket(Bucket=bucket)
# From now on.
moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
print(json.dumps({"key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}), flush=True)
sys.stdin.read()
