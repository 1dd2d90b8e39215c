// The organisation's OpenID Connect provider: oidc-provider with a log-in form and a file of users.
//
//     node server.mjs /etc/outside-oidc/provider.json
//
// Authorization code flow with PKCE (RFC 7636), claims by OpenID Connect Core §5.1. The claims of a user are those of the
// configuration, changed by the file "overrides", which is read again for each answer so that tests can change groups.
// Keys and sessions live as long as the process.

import { createHash, generateKeyPairSync, randomBytes, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import Provider from 'oidc-provider';

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const MOST_OCTETS = 4096;

function overrides() {
  try {
    return JSON.parse(readFileSync(config.overrides, 'utf8'));
  } catch (error) {
    if (error.code !== 'ENOENT') console.error(`${config.overrides}: ${error.message}`);
    return {};
  }
}

function findAccount(ctx, name) {
  const user = Object.hasOwn(config.users, name) ? config.users[name] : undefined;
  if (!user) return undefined;
  return {
    accountId: name,
    claims: () => ({ sub: name, preferred_username: name, ...user, ...overrides()[name] }),
  };
}

// Nobody is asked whether the organisation's own applications may know the name.
async function loadExistingGrant(ctx) {
  const { client, session, provider: { Grant } } = ctx.oidc;
  const known = session.grantIdFor(client.clientId);
  if (known) return Grant.find(known);
  const grant = new Grant({ clientId: client.clientId, accountId: session.accountId });
  grant.addOIDCScope('openid profile email');
  await grant.save();
  return grant;
}

const signingKey = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' });

const provider = new Provider(config.issuer, {
  clients: Object.entries(config.clients).map(([id, client]) => ({
    client_id: id,
    client_secret: client.secret,
    redirect_uris: client.redirect_uris,
    grant_types: ['authorization_code'],
    response_types: ['code'],
    token_endpoint_auth_method: 'client_secret_basic',
  })),
  claims: {
    openid: ['sub'],
    email: ['email', 'email_verified'],
    profile: ['name', 'given_name', 'family_name', 'preferred_username', 'locale', 'groups'],
  },
  scopes: ['openid', 'profile', 'email'],
  pkce: { required: () => true },
  features: { devInteractions: { enabled: false } },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  cookies: { keys: [randomBytes(32).toString('base64url')] },
  jwks: { keys: [{ ...signingKey, use: 'sig', alg: 'RS256', kid: 'lab' }] },
  ttl: { Interaction: 3600, Session: 86400, Grant: 86400, AccessToken: 3600, IdToken: 3600, AuthorizationCode: 60 },
  findAccount,
  loadExistingGrant,
});
provider.on('server_error', (ctx, error) => console.error(error));

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.codePointAt(0)};`);

function form(client, message) {
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in</title>
<style>
body { margin: 0; background: #eef1f5; font: 1.05rem/1.5 system-ui, sans-serif; color: #1c2430; }
main { max-width: 22rem; margin: 12vh auto 0; padding: 2rem; background: #fff; border-radius: .5rem; }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit; }
input { margin: .2rem 0 1rem; padding: .5rem; border: 1px solid #8a94a3; border-radius: .3rem; }
button { margin-top: .5rem; padding: .6rem; border: 0; border-radius: .3rem; background: #0b57a4; color: #fff; }
button.quiet { background: none; color: #0b57a4; }
.wrong { color: #a4110b; }
</style>
</head>
<body>
<main>
<h1>Example SSO</h1>
<p>Sign in to ${escape(client)}.</p>
${message ? `<p class="wrong" role="alert">${escape(message)}</p>` : ''}
<form method="post" autocomplete="off">
<label for="user">User</label>
<input id="user" name="user" autofocus required>
<label for="password">Password</label>
<input id="password" name="password" type="password" required>
<button id="sign-in" type="submit">Sign in</button>
<button id="cancel" class="quiet" type="submit" name="cancel" value="1" formnovalidate>Cancel</button>
</form>
</main>
</body>
</html>
`;
}

function show(res, status, html) {
  res.writeHead(status, { 'Content-Type': 'text/html; charset=utf-8', 'Cache-Control': 'no-store' });
  res.end(html);
}

async function fields(req) {
  let text = '';
  for await (const part of req) {
    text += part;
    if (text.length > MOST_OCTETS) throw new Error('the form is too large');
  }
  return new URLSearchParams(text);
}

const digest = (text) => createHash('sha256').update(text).digest();

async function interaction(req, res) {
  const { prompt, params } = await provider.interactionDetails(req, res);
  if (prompt.name !== 'login') throw new Error(`nobody can answer the prompt ${prompt.name}`);
  if (req.method !== 'POST') return show(res, 200, form(params.client_id, ''));
  const answer = await fields(req);
  if (answer.has('cancel')) {
    return provider.interactionFinished(req, res, { error: 'access_denied', error_description: 'cancelled' });
  }
  const name = answer.get('user') ?? '';
  const right = timingSafeEqual(digest(answer.get('password') ?? ''), digest(config.password));
  if (!right || !findAccount(undefined, name)) {
    return show(res, 401, form(params.client_id, 'User or password is wrong.'));
  }
  return provider.interactionFinished(req, res, { login: { accountId: name } });
}

const callback = provider.callback();

function handle(req, res) {
  if (!req.url.startsWith('/interaction/')) return callback(req, res);
  return interaction(req, res).catch((error) => {
    console.error(error.message);
    show(res, 400, '<!DOCTYPE html><title>Sign in</title><p>This sign-in has expired. Please start again.</p>\n');
  });
}

const tls = { key: readFileSync(config.key), cert: readFileSync(config.certificate) };
for (const address of config.addresses) {
  createServer(tls, handle).listen(443, address, () => console.log(`listening on ${address}`));
}
