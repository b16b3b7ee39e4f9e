// A real OpenID provider (npm oidc-provider, certified) over https on a free loopback port, for tests/spec/openid_provider.rs.
// Runs in a folder that has node_modules. The one argument is a JSON file: certificate, key, ca (PEM texts), secret.
// Says one JSON line when it is up and after each command; a command is a line on standard input:
//   publish   a new signing key is in the JWKS, and the old one still signs
//   sign      the new key signs, and the old one is still in the JWKS
//   retire    the old key is gone
// Ends when standard input does, so it never outlives its test.
import crypto from "node:crypto";
import fs from "node:fs";
import https from "node:https";
import readline from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.cwd() + "/x.js");
const { default: Provider } = await import(pathToFileURL(require.resolve("oidc-provider")));
const settings = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const newKey = (kid) => ({
  ...crypto.generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey.export({ format: "jwk" }),
  kid, alg: "ES256", use: "sig",
});

const resources = {
  "urn:gatepost:jwt": { audience: "gatepost", accessTokenFormat: "jwt", jwt: { sign: { alg: "ES256" } } },
  "urn:gatepost:opaque": { audience: "gatepost", accessTokenFormat: "opaque" },
  "urn:somebody:else": { audience: "somebody-else", accessTokenFormat: "opaque" },
};

const client = (client_id, more) => ({
  client_id, client_secret: settings.secret, grant_types: ["client_credentials"], redirect_uris: [], response_types: [],
  ...more,
});

function provider(issuer, keys) {
  const made = new Provider(issuer, {
    jwks: { keys },
    clients: [
      client("shop"),
      client("gate:post"),
      client("gatepost-mtls", {
        client_secret: undefined, token_endpoint_auth_method: "tls_client_auth", tls_client_auth_san_dns: "gatepost",
      }),
    ],
    clientDefaults: { id_token_signed_response_alg: "ES256" },
    clientAuthMethods: ["client_secret_basic", "tls_client_auth"],
    features: {
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      devInteractions: { enabled: false },
      mTLS: {
        enabled: true,
        tlsClientAuth: true,
        getCertificate: (ctx) => ctx.socket.getPeerX509Certificate()?.toString(),
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, property, expected) =>
          property === "tls_client_auth_san_dns"
          && ctx.socket.getPeerX509Certificate()?.subjectAltName === `DNS:${expected}`,
      },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => ({ scope: "things:read", accessTokenTTL: 300, ...resources[resource] }),
      },
    },
    // An opaque token of a client has no subject of its own; here it speaks for alice.
    extraTokenClaims: () => ({ sub: "alice", tenant: "acme" }),
  });
  made.on("server_error", (ctx, error) => process.stderr.write(`${error.stack}\n`));
  return made;
}

let [keys, handle, made] = [[newKey("key-1")], undefined, 1];
const server = https.createServer(
  { cert: settings.certificate, key: settings.key, ca: settings.ca, requestCert: true, rejectUnauthorized: false },
  (request, response) => handle(request, response),
);
server.listen(0, "127.0.0.1", () => {
  const issuer = `https://localhost:${server.address().port}`;
  // Tokens outlive a change of keys: the store is the module's, not the provider's.
  const renew = () => { handle = provider(issuer, keys).callback(); };
  renew();
  say({ up: issuer });
  readline.createInterface({ input: process.stdin }).on("line", (command) => {
    if (command === "publish") keys = [keys[0], newKey(`key-${++made}`)];
    else if (command === "sign") keys = [keys[1], keys[0]];
    else if (command === "retire") keys = [keys[0]];
    renew();
    say({ done: command });
  }).on("close", () => process.exit(0));
});
